"""The two lines in a plain loop, on a model from a package: segmentation_models_pytorch's U-Net.

    python examples/two_lines.py

prints the plan, then every 20 steps the host's own loss and the distillation's (the first step only measures it), then
what is left on the host:

    step 0: host 0.7815, distillation 0.0000
    step 20: host 0.2276, distillation 0.0042
    ...
    hooks left: 0
"""

import segmentation_models_pytorch as smp
import torch

import inpaint_distill


def batches(steps, size=64):
    """Smooth random images in [-1, 1] with a square hole; put your own loader here."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        coarse = torch.rand(8, 3, 6, 6, generator=generator) * 2 - 1
        image = torch.nn.functional.interpolate(coarse, size, mode="bicubic").clamp(-1, 1)
        mask = torch.zeros(8, 1, size, size)
        mask[:, :, size // 4 : size // 2, size // 4 : 3 * size // 4] = 1
        yield image, mask


def main(steps=100):
    torch.manual_seed(0)
    host = smp.Unet("resnet18", encoder_weights=None, in_channels=4, classes=3)
    optimizer = torch.optim.AdamW(host.parameters(), lr=1e-3)
    distiller = inpaint_distill.attach(host, optimizer)  # line one
    for step, (image, mask) in enumerate(batches(steps)):
        restored = host(torch.cat([image * (1 - mask), mask], dim=1))
        host_loss = (restored - image).abs().mean()
        loss = host_loss + distiller.loss(image, mask)  # line two
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step == 0:
            print(distiller.plan)
        if step % 20 == 0:
            print(f"step {step}: host {host_loss.item():.4f}, distillation {distiller.log['loss'].item():.4f}")
    distiller.detach()
    print("hooks left:", sum(len(module._forward_hooks) for module in host.modules()))


if __name__ == "__main__":
    main()
