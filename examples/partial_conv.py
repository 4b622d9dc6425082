"""Partial convolutions with completion blocks: the host takes 1 = KNOWN, its stages put out (feature, mask).

    python examples/partial_conv.py

prints what has been injected, both losses, and what comes back when host and blocks are loaded into a fresh host:

    completion block after encoder.0[0]: 1,808 parameters
    step 0: host 0.6278, distillation 0.0000
    step 12: host 0.3872, distillation 0.0081
    step 24: host 0.3390, distillation 0.0064
    outputs equal: True
"""

import tempfile
from pathlib import Path

import torch

import inpaint_distill
from inpaint_distill.adapters import get
from inpaint_distill.training.masks import free_form
from inpaint_distill.training.scenes import dead_leaves

torch.manual_seed(0)
images = dead_leaves(64, 32, seed=0).float() / 127.5 - 1  # (64, 3, 32, 32) in [-1, 1]: put your own loader here
masks = free_form(64, 32, seed=0).float()  # (64, 1, 32, 32), 1 in the hole

host = get("partial-conv").build(width=8, levels=3)
optimizer = torch.optim.Adam(host.parameters(), lr=2e-3)
distiller = inpaint_distill.attach(host, optimizer, completion=True)

for step, picked in enumerate(torch.randint(len(images), (25, 8))):
    image, mask = images[picked], masks[picked]
    known = (1 - mask).expand_as(image)
    restored, _ = host(image * known, known)
    host_loss = (restored - image).abs().mean()
    loss = host_loss + distiller.loss(image, mask)  # 1 = hole, whatever the host takes
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step == 0:
        print(*distiller.plan.injected, sep="\n")
    if step % 12 == 0:
        print(f"step {step}: host {host_loss:.4f}, distillation {distiller.log['loss']:.4f}")

host = distiller.detach().eval()
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder, "host.safetensors")
    inpaint_distill.save_host(host, path)
    fresh = inpaint_distill.load_host(get("partial-conv").build(width=8, levels=3), path).eval()
with torch.no_grad():
    print("outputs equal:", torch.equal(fresh(image * known, known)[0], host(image * known, known)[0]))
