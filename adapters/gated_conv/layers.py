"""The gated convolution."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["GatedConv"]

# For z, g ~ N(0, 1): E[(elu(2.71 z) sigmoid(0.1 g))^2] = 1. Without it every gate halves the signal, and after the more
# than thirty layers of two stages nothing of the input is left. Gates start near one half, because gates that follow
# the size of their input let large features grow from layer to layer.
FEATURE_GAIN = 2.71
GATE_GAIN = 0.1


class GatedConv(nn.Module):
    """Convolve, and let a second convolution decide how much passes: elu(feature) * sigmoid(gate).

    Yu et al., ICCV 2019, Eq. 3. Both convolutions are one: the first half of its channels is the feature, the second
    half the gate. Padding is zeros.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1, dilation: int = 1
    ) -> None:
        super().__init__()
        padding = dilation * (kernel_size // 2)
        self.conv = nn.Conv2d(in_channels, 2 * out_channels, kernel_size, stride, padding, dilation)
        std = 1 / math.sqrt(in_channels * kernel_size**2)
        nn.init.normal_(self.conv.weight[:out_channels], std=FEATURE_GAIN * std)
        nn.init.normal_(self.conv.weight[out_channels:], std=GATE_GAIN * std)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in, H, W) to (B, out, H / stride, W / stride)."""
        feature, gate = self.conv(x).chunk(2, dim=1)
        return F.elu(feature) * torch.sigmoid(gate)
