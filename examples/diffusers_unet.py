"""A diffusion model that inpaints: diffusers' UNet2DModel on (noisy image, image with its hole, hole) and a timestep.

    python examples/diffusers_unet.py

prints the host's own loss and the distillation's, and which stages and attention were tapped:

    step 0: host 0.4937, distillation 0.0000
    step 12: host 0.3099, distillation 0.0009
    step 24: host 0.2638, distillation 0.0012
    tapped: down_blocks.0[1][0] down_blocks.1[0] mid_block.attentions.0
"""

import torch

import inpaint_distill
from inpaint_distill import Convention, Variant
from inpaint_distill.training.masks import free_form
from inpaint_distill.training.scenes import dead_leaves

try:
    from diffusers import DDPMScheduler, UNet2DModel
except ImportError:
    raise SystemExit("this example needs diffusers: pip install diffusers") from None


class NoisyInpainting(inpaint_distill.Adapter):
    """Says that the first three channels are noisy: no image, no mask, and the same for the teacher."""

    name = "noisy-inpainting"
    variants = (Variant(source="diffusers", kind="UNet2DModel", has=(), convention=Convention("noisy+image+hole")),)


torch.manual_seed(0)
images = dead_leaves(64, 32, seed=0).float() / 127.5 - 1  # (64, 3, 32, 32) in [-1, 1]: put your own loader here
masks = free_form(64, 32, seed=0).float()  # (64, 1, 32, 32), 1 in the hole

blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
sizes = {"sample_size": 32, "in_channels": 7, "out_channels": 3, "block_out_channels": (8, 16), "norm_num_groups": 4}
host = UNet2DModel(**sizes, **blocks, layers_per_block=1)
noising = DDPMScheduler(prediction_type="sample")  # the network predicts the image itself, not the noise
optimizer = torch.optim.AdamW(host.parameters(), lr=2e-3)
distiller = inpaint_distill.attach(host, optimizer, adapter=NoisyInpainting())

for step, picked in enumerate(torch.randint(len(images), (25, 4))):
    image, mask = images[picked], masks[picked]
    timestep = torch.randint(noising.config.num_train_timesteps, (len(image),))
    noisy = noising.add_noise(image, torch.randn_like(image), timestep)
    restored = host(torch.cat([noisy, image * (1 - mask), mask], dim=1), timestep).sample
    host_loss = (restored - image).abs().mean()
    loss = host_loss + distiller.loss(image, mask)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 12 == 0:
        print(f"step {step}: host {host_loss:.4f}, distillation {distiller.log['loss']:.4f}")
distiller.detach()
print("tapped:", *(each.label for each in (*distiller.plan.stages, *distiller.plan.attention)))
