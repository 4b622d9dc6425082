"""The block that aggregates contextual transformations."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["AOTBlock", "conv"]


class AOTBlock(nn.Module):
    """Look at several distances at once and decide place by place what of it to take (Zeng et al., TVCG 2022).

    *Split* into one branch for each dilation rate, *transform* with dilated convolutions, *aggregate* with one
    convolution over all branches. A gated residual connection replaces the identical one::

        g = sigmoid(conv(x)),   x' = x * g + fuse(branches(x)) * (1 - g)

    Args:
        channels: Channels of the feature; a multiple of the number of rates.
        rates: Dilation of each branch.
    """

    def __init__(self, channels: int, rates: Sequence[int]) -> None:
        super().__init__()
        each = channels // len(rates)
        # Zeros around the map, not its reflection: that would have to be larger than the largest rate.
        self.branches = nn.ModuleList(
            nn.Sequential(conv(channels, each, 3, padding=rate, dilation=rate), nn.ReLU(inplace=True)) for rate in rates
        )
        self.fuse = conv(channels, channels, 3, padding=1)
        self.gate = conv(channels, channels, 3, padding=1, gain=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        gate = torch.sigmoid(self.gate(x))
        seen: Tensor = self.fuse(torch.cat([branch(x) for branch in self.branches], dim=1))
        return x * gate + seen * (1 - gate)


def conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    gain: float = math.sqrt(2),
) -> nn.Conv2d:
    """Return a convolution that keeps the second moment of what a ReLU has cut in half (He et al., ICCV 2015, ours).

    Nothing is normalised on the way, so that smaller weights would leave little of the input at the output.
    """
    layer = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation)
    nn.init.normal_(layer.weight, std=gain / math.sqrt(in_channels * kernel_size**2))
    return layer
