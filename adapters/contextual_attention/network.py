"""DeepFill v1: plain convolutions with ELU in the two-stage layout."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inpaint_distill.adapters.contextual_attention.two_stage import TwoStageGenerator

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ContextualAttentionGenerator", "ConvELU"]

# 1 / sqrt(E[elu(z)^2]) for z ~ N(0, 1): keeps the second moment of the features through the depth.
ELU_GAIN = 1.245


class ConvELU(nn.Module):
    """Convolve with zero padding and apply ELU."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1, dilation: int = 1
    ) -> None:
        super().__init__()
        padding = dilation * (kernel_size // 2)
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation)
        nn.init.normal_(self.conv.weight, std=ELU_GAIN / math.sqrt(in_channels * kernel_size**2))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in, H, W) to (B, out, H / stride, W / stride)."""
        return F.elu(self.conv(x))


def _clip(image: Tensor) -> Tensor:
    """Clip to [-1, 1]."""
    return torch.clamp(image, -1.0, 1.0)


class ContextualAttentionGenerator(TwoStageGenerator):
    """Inpaint with contextual attention: DeepFill v1 (Yu et al., CVPR 2018). The discriminators are not included.

    Args:
        width: Channels of the first level; the paper's is 32.
        dilations: Dilations of the bottleneck.
    """

    def __init__(self, width: int = 32, dilations: Sequence[int] = (2, 4, 8, 16)) -> None:
        super().__init__(width, dilations, ConvELU, _clip)
