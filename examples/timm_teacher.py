"""A teacher of another architecture: a timm backbone, whose features the host learns to predict inside the hole.

    python examples/timm_teacher.py

prints the plan, the host's own loss and how far its features are from the teacher's:

    InpaintUNet, dry run on 32 x 48
    call: the host's own
    stage      call  output  layout  channels  size     stride  kept as
    ---------  ----  ------  ------  --------  -------  ------  ---------
    encoder.0  0     tensor  NCHW    64        16 x 24  2       reference
    encoder.1  0     tensor  NCHW    64        8 x 12   4       reference
    encoder.2  0     tensor  NCHW    128       4 x 6    8       reference
    chosen: named by adapter 'unet'
    teacher: module: FeatureListNet
    cross: 271,104 added parameters
    self: 131,456 added parameters
    step 0: host 0.5328, cross 92.8250
    step 12: host 0.2825, cross 29.3418
    step 24: host 0.2464, cross 20.5512
"""

import timm
import torch

import inpaint_distill
from inpaint_distill.adapters import get
from inpaint_distill.training.masks import free_form
from inpaint_distill.training.scenes import dead_leaves

torch.manual_seed(0)
images = dead_leaves(64, 32, seed=0).float() / 127.5 - 1  # (64, 3, 32, 32) in [-1, 1]: put your own loader here
masks = free_form(64, 32, seed=0).float()  # (64, 1, 32, 32), 1 in the hole

# Random weights, so that nothing is downloaded. In earnest: pretrained=True, or with a file of your own
# pretrained=True, pretrained_cfg_overlay={"file": "resnet18.safetensors"}.
backbone = timm.create_model("resnet18", features_only=True, out_indices=(0, 1, 2), pretrained=False)
mean, std = (torch.tensor(backbone.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
teacher = inpaint_distill.ModuleTeacher(backbone, call=lambda network, image: network((image / 2 + 0.5 - mean) / std))

host = get("unet").build(levels=3, width=8)
optimizer = torch.optim.AdamW(host.parameters(), lr=2e-3)
distiller = inpaint_distill.attach(host, optimizer, teacher=teacher)

for step, picked in enumerate(torch.randint(len(images), (25, 8))):
    image, mask = images[picked], masks[picked]
    restored = host(torch.cat([image * (1 - mask), mask], dim=1))
    host_loss = (restored - image).abs().mean()
    loss = host_loss + distiller.loss(image, mask)  # the image in [-1, 1]; `call` normalises it for the teacher
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step == 0:
        print(distiller.plan)
    if step % 12 == 0:
        print(f"step {step}: host {host_loss:.4f}, cross {distiller.log['cross']:.4f}")
distiller.detach()
