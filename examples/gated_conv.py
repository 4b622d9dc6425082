"""A host with two outputs: the gated-convolution reference (DeepFill v2), coarse and fine both supervised.

    python examples/gated_conv.py

prints the host's own loss, both terms and the factors they enter with (the first step only measures them), and what is
left on the host in the end:

    step 0: host 0.8334, cross 2.8996 x 0.0000, self 5.1422 x 0.0000
    step 12: host 0.8431, cross 1.1743 x 0.0034, self 5.2065 x 0.0001
    step 24: host 0.7374, cross 1.1075 x 0.0094, self 1.7183 x 0.0003
    hooks left: 0
"""

import torch

import inpaint_distill
from inpaint_distill.adapters import get
from inpaint_distill.training.masks import free_form
from inpaint_distill.training.scenes import dead_leaves

torch.manual_seed(0)
images = dead_leaves(64, 32, seed=0).float() / 127.5 - 1  # (64, 3, 32, 32) in [-1, 1]: put your own loader here
masks = free_form(64, 32, seed=0).float()  # (64, 1, 32, 32), 1 in the hole

host = get("gated-conv").build(width=8)
optimizer = torch.optim.Adam(host.parameters(), lr=2e-3)
config = inpaint_distill.Config(warmup=10, cross=inpaint_distill.TermConfig(weight=0.3))

with inpaint_distill.attach(host, optimizer, config=config) as distiller:
    for step, picked in enumerate(torch.randint(len(images), (25, 8))):
        image, mask = images[picked], masks[picked]
        coarse, fine = host(torch.cat([image * (1 - mask), torch.ones_like(mask), mask], dim=1))
        host_loss = (coarse - image).abs().mean() + (fine - image).abs().mean()
        loss = host_loss + distiller.loss(image, mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 12 == 0:
            log = distiller.log
            terms = (f"{name} {log[name]:.4f} x {log[f'factor/{name}']:.4f}" for name in ("cross", "self"))
            print(f"step {step}: host {host_loss:.4f},", ", ".join(terms))

print("hooks left:", sum(len(module._forward_hooks) for module in host.modules()))
