"""A host of your own whose call says nothing of the mask, so that it cannot be repeated for the teacher: an adapter.

    python examples/own_host.py

A package may register it in its pyproject.toml, under [project.entry-points."inpaint_distill.adapters"], as
my-host = "my_package:MyAdapter"; with `matches` besides, attach() finds it by itself. Printed are the losses:

    step 0: host 0.4928, distillation 0.0000
    step 24: host 0.2707, distillation 0.0035
"""

import torch

import inpaint_distill
from inpaint_distill.adapters import get
from inpaint_distill.training.masks import free_form
from inpaint_distill.training.scenes import dead_leaves


class MyHost(torch.nn.Sequential):
    """A network that is told the mask beforehand, and then takes the image alone."""

    def set_mask(self, mask):
        """Say what is to be filled, 1 = hole."""
        self.mask = mask

    def forward(self, image):
        """Restore an image (B, 3, H, W)."""
        return super().forward(torch.cat([image * (1 - self.mask), self.mask], dim=1))


class MyAdapter(inpaint_distill.Adapter):
    """Says how to run the host, or a copy of it as the teacher."""

    name = "my-host"
    replayable = False

    def outputs(self, host, image, hole):
        """Return all restored images, here one."""
        host.set_mask(hole)
        return (host(image),)


torch.manual_seed(0)
images = dead_leaves(64, 32, seed=0).float() / 127.5 - 1  # (64, 3, 32, 32) in [-1, 1]: put your own loader here
masks = free_form(64, 32, seed=0).float()  # (64, 1, 32, 32), 1 in the hole
host = MyHost(get("unet").build(levels=3, width=8))
optimizer = torch.optim.AdamW(host.parameters(), lr=2e-3)
distiller = inpaint_distill.attach(host, optimizer, adapter=MyAdapter())
for step, picked in enumerate(torch.randint(len(images), (25, 8))):
    image, mask = images[picked], masks[picked]
    host.set_mask(mask)
    host_loss = (host(image) - image).abs().mean()
    loss = host_loss + distiller.loss(image, mask)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 24 == 0:
        print(f"step {step}: host {host_loss:.4f}, distillation {distiller.log['loss']:.4f}")
