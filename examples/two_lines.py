"""The two lines in a plain loop, on a model from a package: segmentation_models_pytorch's U-Net.

    python examples/two_lines.py

prints what is tapped and added, the host's own loss and the distillation's (the first step only measures it), and what
is left on the host in the end:

    Unet, dry run on 32 x 48
    call: the host's own
    stage    call  output  layout  channels  size     stride  kept as
    -------  ----  ------  ------  --------  -------  ------  ---------
    encoder  0     [1]     NCHW    64        16 x 24  2       reference
    encoder  0     [2]     NCHW    64        8 x 12   4       reference
    encoder  0     [3]     NCHW    128       4 x 6    8       reference
    chosen: named by adapter 'segmentation-models'
    teacher: ema: moving average of the host, decay 0.999
    cross: 271,104 added parameters
    self: 131,456 added parameters
    step 0: host 0.7037, distillation 0.0000
    step 12: host 0.3419, distillation 0.0052
    step 24: host 0.2998, distillation 0.0053
    hooks left: 0
"""

import segmentation_models_pytorch as smp
import torch

import inpaint_distill
from inpaint_distill.training.masks import free_form
from inpaint_distill.training.scenes import dead_leaves

torch.manual_seed(0)
images = dead_leaves(64, 32, seed=0).float() / 127.5 - 1  # (64, 3, 32, 32) in [-1, 1]: put your own loader here
masks = free_form(64, 32, seed=0).float()  # (64, 1, 32, 32), 1 in the hole

host = smp.Unet(
    "resnet18", encoder_weights=None, encoder_depth=3, decoder_channels=(32, 16, 8), in_channels=4, classes=3
)
optimizer = torch.optim.AdamW(host.parameters(), lr=2e-3)
distiller = inpaint_distill.attach(host, optimizer)  # line one

for step, picked in enumerate(torch.randint(len(images), (25, 8))):
    image, mask = images[picked], masks[picked]
    restored = host(torch.cat([image * (1 - mask), mask], dim=1))
    host_loss = (restored - image).abs().mean()
    loss = host_loss + distiller.loss(image, mask)  # line two
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step == 0:
        print(distiller.plan)
    if step % 12 == 0:
        print(f"step {step}: host {host_loss:.4f}, distillation {distiller.log['loss']:.4f}")

distiller.detach()
print("hooks left:", sum(len(module._forward_hooks) for module in host.modules()))
