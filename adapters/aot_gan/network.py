"""AOT-GAN's generator."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from inpaint_distill.adapters.aot_gan.layers import AOTBlock, conv
from inpaint_distill.errors import ConfigError, InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["AOTGenerator"]


class AOTGenerator(nn.Module):
    """Inpaint with aggregated contextual transformations: AOT-GAN (Zeng et al., TVCG 2022).

    The discriminator is not included. ``encoder`` is flat, so that a stage is the activation at a place in it.

    Args:
        width: Channels at full resolution; the paper's is 64.
        blocks: AOT blocks at 1/4 resolution; the paper's number is 8.
        rates: Dilation of each branch of a block; ``4 width`` is a multiple of their number.

    Raises:
        ConfigError: If a number is below 1, there are no rates, or they do not divide the channels.
    """

    def __init__(self, width: int = 64, blocks: int = 8, rates: Sequence[int] = (1, 2, 4, 8)) -> None:
        super().__init__()
        if min(width, blocks, *rates) < 1:
            asked = f"width={width}, blocks={blocks}, rates={tuple(rates)}"
            raise ConfigError(asked, "a number below 1", "use positive numbers")
        if not rates or 4 * width % len(rates):
            found = f"{4 * width} channels for {len(rates)} branches"
            raise ConfigError(
                f"width={width}, rates={tuple(rates)}", found, "use a number of rates that divides 4 width"
            )
        self.encoder = nn.Sequential(
            nn.ReflectionPad2d(3),
            conv(4, width, 7, gain=1),
            nn.ReLU(inplace=True),
            conv(width, 2 * width, 4, stride=2, padding=1),
            nn.ReLU(inplace=True),
            conv(2 * width, 4 * width, 4, stride=2, padding=1),
            nn.ReLU(inplace=True),
        )
        self.middle = nn.Sequential(*(AOTBlock(4 * width, rates) for _ in range(blocks)))
        self.decoder = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="bilinear"),
            conv(4 * width, 2 * width, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Upsample(scale_factor=2, mode="bilinear"),
            conv(2 * width, width, 3, padding=1),
            nn.ReLU(inplace=True),
            conv(width, 3, 3, padding=1, gain=1),
        )

    def forward(self, image: Tensor, hole: Tensor) -> Tensor:
        """Restore an image.

        Args:
            image: (B, 3, H, W) in [-1, 1], white (1) in the hole; H and W multiples of 4.
            hole: (B, 1, H, W), 1 in the hole, 0 elsewhere.

        Returns:
            The image (B, 3, H, W) in [-1, 1], not composited.

        Raises:
            InputError: If the size does not fit.
        """
        if image.shape[2] % 4 or image.shape[3] % 4:
            raise InputError(
                "an image whose sides are multiples of 4",
                f"shape {tuple(image.shape)}",
                "pad or crop the image and its hole",
            )
        restored: Tensor = self.decoder(self.middle(self.encoder(torch.cat([image, hole], dim=1))))
        return torch.tanh(restored)
