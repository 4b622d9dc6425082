"""An adversarial loop: the generator runs twice per step, and is distilled only where it is the one that learns.

    python examples/gan_loop.py

prints how well the holes of held-out scenes are filled, in eval mode between the steps, and the distillation's loss:

    step 0: hole PSNR 11.54 dB, distillation 0.0000
    step 12: hole PSNR 13.11 dB, distillation 0.0037
    step 24: hole PSNR 13.55 dB, distillation 0.0050
"""

import torch
from torch import nn
from torch.nn.functional import softplus

import inpaint_distill
from inpaint_distill.adapters import get
from inpaint_distill.training.masks import free_form
from inpaint_distill.training.scenes import dead_leaves

torch.manual_seed(0)
images = dead_leaves(80, 32, seed=0).float() / 127.5 - 1  # (80, 3, 32, 32) in [-1, 1]: put your own loader here
masks = free_form(80, 32, seed=0).float()  # (80, 1, 32, 32), 1 in the hole

generator = get("unet").build(levels=3, width=8)
strided = [nn.Conv2d(4, 16, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(16, 32, 4, 2, 1), nn.LeakyReLU(0.2)]
patch_gan = nn.Sequential(*strided, nn.Conv2d(32, 1, 3))  # one logit per patch, from the image and its mask
learns = torch.optim.Adam(generator.parameters(), lr=2e-3, betas=(0.5, 0.9))
judges = torch.optim.Adam(patch_gan.parameters(), lr=2e-3, betas=(0.5, 0.9))
distiller = inpaint_distill.attach(generator, learns)  # the host and the optimizer that trains it

for step, picked in enumerate(torch.randint(64, (25, 8))):
    image, mask = images[picked], masks[picked]
    masked = torch.cat([image * (1 - mask), mask], dim=1)

    with torch.no_grad():  # the distiller does not look at forwards without gradients
        fake = generator(masked)
    real_logits, fake_logits = (patch_gan(torch.cat([each, mask], dim=1)) for each in (image, fake))
    judges.zero_grad()
    (softplus(-real_logits) + softplus(fake_logits)).mean().backward()
    judges.step()

    fake = generator(masked)
    fooled = softplus(-patch_gan(torch.cat([fake, mask], dim=1))).mean()
    loss = (fake - image).abs().mean() + 0.01 * fooled + distiller.loss(image, mask)
    learns.zero_grad()
    loss.backward()
    learns.step()

    if step % 12 == 0:
        image, mask = images[64:], masks[64:]
        with torch.no_grad():
            restored = generator.eval()(torch.cat([image * (1 - mask), mask], dim=1))
        generator.train()
        psnr = 10 * torch.log10(4 * 3 * mask.sum() / ((restored - image) * mask).square().sum())
        print(f"step {step}: hole PSNR {psnr:.2f} dB, distillation {distiller.log['loss']:.4f}")
distiller.detach()
