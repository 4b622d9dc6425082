"""The partial convolution."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["PartialConv"]


class PartialConv(nn.Module):
    """Convolve known values only, and mark as known what had at least one in its window (Liu et al., ECCV 2018).

    Eq. 1 and 2, with one mask value per input channel::

        x' = W (x * m) * sum(1) / sum(m) + b,   m' = 1     where sum(m) > 0
        x' = 0,                                 m' = 0     elsewhere

    Sums run over the window and the channels; sum(1) counts the padding, sum(m) does not.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, bias: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False)
        self.bias = nn.Parameter(torch.zeros(out_channels, 1, 1)) if bias else None
        nn.init.kaiming_normal_(self.conv.weight, nonlinearity="relu")

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Convolve a feature and update its mask.

        Args:
            x: (B, in, H, W).
            mask: (B, in, H, W), 1 where ``x`` is known, 0 elsewhere.

        Returns:
            The feature (B, out, H', W') and its mask of the same shape, a view of one channel.
        """
        kernel, stride, padding = self.conv.kernel_size[0], self.conv.stride[0], self.conv.kernel_size[0] // 2
        with torch.no_grad():
            # All filters see the same window, so one channel of sums serves every output channel.
            known = F.avg_pool2d(mask.sum(1, keepdim=True), kernel, stride, padding, divisor_override=1)
            updated = (known > 0).to(x.dtype)
            ratio = updated * (self.conv.in_channels * kernel**2) / known.clamp(min=1)
        output = self.conv(x * mask) * ratio
        if self.bias is not None:
            output = output + self.bias * updated
        return output, updated.expand_as(output)
