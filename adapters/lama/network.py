"""The LaMa generator."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from inpaint_distill.adapters.lama.layers import FourierConv, Pair
from inpaint_distill.errors import ConfigError, InputError

__all__ = ["LaMaGenerator"]

_LEVELS = 3


class FourierBlock(nn.Module):
    """Add two fast Fourier convolutions to a pair."""

    def __init__(self, local: int, spectral: int) -> None:
        super().__init__()
        self.conv1 = FourierConv((local, local), (spectral, spectral))
        self.conv2 = FourierConv((local, local), (spectral, spectral))

    def forward(self, x: Pair) -> Pair:
        """Map a pair of (B, C, H, W) to a pair of the same shapes."""
        local, spectral = self.conv2(self.conv1(x))
        return x[0] + local, x[1] + spectral


class JoinPair(nn.Module):
    """Concatenate the parts of a pair along the channels."""

    def forward(self, x: tuple[Tensor, Tensor]) -> Tensor:
        """Map a pair of (B, local, H, W) and (B, global, H, W) to (B, local + global, H, W)."""
        return torch.cat(x, dim=1)


class LaMaGenerator(nn.Module):
    """Inpaint with fast Fourier convolutions (Suvorov et al., WACV 2022, figure 2). The discriminator is not included.

    One ``nn.Sequential``, as released: ``model.1`` to ``model.4`` are the encoder, each at half the resolution of the
    one before. Its blocks put out (local, global), and the global part is the number 0 until the last of them.

    Args:
        width: Channels at full resolution; the paper's is 64.
        blocks: Residual blocks at 1/8 resolution; the paper's are 9, and 18 in its large model.
        spectral: Share of the channels there that belong to the global branch; the paper's is 0.75.

    Raises:
        ConfigError: If a number is below 1, or either branch is left without channels.
    """

    def __init__(self, width: int = 64, blocks: int = 9, spectral: float = 0.75) -> None:
        super().__init__()
        if width < 1 or blocks < 1:
            raise ConfigError(f"width={width}, blocks={blocks}", "a number below 1", "use positive numbers")
        channels = [width * 2**level for level in range(_LEVELS + 1)]
        whole = int(channels[-1] * spectral)
        if not 0 < whole < channels[-1]:
            found = f"{whole} of {channels[-1]} channels at the lowest resolution"
            raise ConfigError(f"spectral={spectral}", found, "use a share between 0 and 1, such as 0.75")
        local = channels[-1] - whole
        layers: list[nn.Module] = [
            nn.ReflectionPad2d(3),
            FourierConv((4, width), (0, 0), kernel_size=7, pad=False),
            *(FourierConv((channels[level], channels[level + 1]), (0, 0), stride=2) for level in range(_LEVELS - 1)),
            FourierConv((channels[-2], local), (0, whole), stride=2),
            *(FourierBlock(local, whole) for _ in range(blocks)),
            JoinPair(),
        ]
        activation = nn.ReLU(inplace=True)  # one for all three levels, as released
        for above, below in zip(channels[:0:-1], channels[-2::-1], strict=True):
            up = nn.ConvTranspose2d(above, below, 3, stride=2, padding=1, output_padding=1, bias=False)
            layers += [up, nn.BatchNorm2d(below), activation]
        layers += [nn.ReflectionPad2d(3), nn.Conv2d(width, 3, 7), nn.Sigmoid()]
        self.model = nn.Sequential(*layers)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Restore an image.

        Args:
            x: (B, 4, H, W): image in [0, 1] with 0 in the hole, hole (1 in the hole); H, W multiples of 8, from 16 on.

        Returns:
            The image (B, 3, H, W) in [0, 1], not composited.

        Raises:
            InputError: If the shape does not fit.
        """
        if x.ndim != 4 or x.shape[1] != 4 or any(side % 8 or side < 16 for side in x.shape[2:]):
            asked = "an image and its hole (B, 4, H, W) whose sides are multiples of 8, from 16 on"
            raise InputError(asked, f"shape {tuple(x.shape)}", "pad or crop the image")
        restored: Tensor = self.model(x)
        return restored
