"""Separable convolutions with parallel weights."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ReparametrisedConv", "SeparableConv"]

_GAIN = math.sqrt(2)


class ReparametrisedConv(nn.Module):
    """Convolve with the sum of several weights of the same shape (Sargsyan et al., ICCV 2023, section 3.3).

    Trained apart and summed before use, they are one convolution: the sum of their outputs, at the cost of one.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        groups: int = 1,
        bias: bool = True,
        branches: int = 4,
    ) -> None:
        super().__init__()
        fan_in = in_channels // groups * kernel_size**2
        weights = torch.randn(branches, out_channels, in_channels // groups, kernel_size, kernel_size)
        self.weights = nn.Parameter(weights / math.sqrt(branches * fan_in))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in, H, W) to (B, out, H, W)."""
        weight = self.weights.sum(0)
        return F.conv2d(x, weight, self.bias, padding=weight.shape[-1] // 2, groups=self.groups)


class SeparableConv(nn.Module):
    """Convolve each channel with 3 x 3 pixels, then mix the channels; leaky ReLU, in place, after both.

    In between, the feature is halved (area average) or afterwards doubled (bilinear). Before the last activation a
    fixed picture of noise is added, times a strength that starts at 0.

    Args:
        in_channels: Channels that come in.
        out_channels: Channels that go out.
        down: Whether to halve the resolution.
        up: Whether to double it.
        resolution: Side of the output, for the noise; ``None`` adds none.
    """

    noise: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        down: bool = False,
        up: bool = False,
        resolution: int | None = None,
    ) -> None:
        super().__init__()
        self.depthwise = ReparametrisedConv(in_channels, in_channels, 3, groups=in_channels)
        self.pointwise = ReparametrisedConv(in_channels, out_channels, 1, bias=False)
        self.down = down
        self.up = up
        self.strength = None
        if resolution is not None:
            self.register_buffer("noise", torch.randn(resolution, resolution))
            self.strength = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in, H, W) to (B, out, H', W')."""
        x = _activate(self.depthwise(x))
        if self.down:
            x = F.avg_pool2d(x, 2)
        x = self.pointwise(x)
        if self.up:
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        if self.strength is not None:
            x = x.add_(self.noise * self.strength)
        return _activate(x)


def _activate(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2, inplace=True) * _GAIN
