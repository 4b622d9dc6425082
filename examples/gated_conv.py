"""A host with two outputs: the gated-convolution reference (DeepFill v2), coarse and fine both supervised.

    python examples/gated_conv.py

prints the host's own loss, both terms and the factors they enter with (the first step only measures them), then what
is left on the host:

    step 0: host 0.9242, cross 7.5645 x 0.0000, self 4.4515 x 0.0000
    step 20: host 0.7566, cross 3.0934 x 0.0015, self 0.7983 x 0.0007
    step 40: host 0.6407, cross 1.7299 x 0.0015, self 0.4967 x 0.0009
    hooks left: 0
"""

import torch

import inpaint_distill
from inpaint_distill.adapters import get


def batches(steps, size=64):
    """Smooth random images in [-1, 1] with a square hole; put your own loader here."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        coarse = torch.rand(4, 3, 6, 6, generator=generator) * 2 - 1
        image = torch.nn.functional.interpolate(coarse, size, mode="bicubic").clamp(-1, 1)
        mask = torch.zeros(4, 1, size, size)
        mask[:, :, size // 4 : size // 2, size // 4 : 3 * size // 4] = 1
        yield image, mask


def main(steps=60):
    torch.manual_seed(0)
    host = get("gated-conv").build(width=16)
    optimizer = torch.optim.Adam(host.parameters(), lr=2e-3)
    config = inpaint_distill.Config(warmup=20, cross=inpaint_distill.TermConfig(weight=0.3))
    with inpaint_distill.attach(host, optimizer, config=config) as distiller:
        for step, (image, mask) in enumerate(batches(steps)):
            coarse, fine = host(torch.cat([image * (1 - mask), torch.ones_like(mask), mask], dim=1))
            host_loss = (coarse - image).abs().mean() + (fine - image).abs().mean()
            loss = host_loss + distiller.loss(image, mask)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % 20 == 0:
                terms = [
                    f"{name} {distiller.log[name]:.4f} x {distiller.log[f'factor/{name}']:.4f}"
                    for name in ("cross", "self")
                ]
                print(f"step {step}: host {host_loss.item():.4f}, {', '.join(terms)}")
    print("hooks left:", sum(len(module._forward_hooks) for module in host.modules()))


if __name__ == "__main__":
    main()
