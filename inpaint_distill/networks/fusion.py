"""An attention module for hosts that have none: global attention and a local filter, mixed per pixel."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from inpaint_distill.double_backward import needs_double_backward
from inpaint_distill.errors import ConfigError

__all__ = ["GlobalLocalAttention"]


class GlobalLocalAttention(nn.Module):
    """Add what the whole image and what the neighbourhood say, mixed per pixel and channel (DGI, attention module).

    ::

        y = d + P(a * o_global + (1 - a) * o_local)      a = sigmoid(conv([o_global, o_local]))
        o_global,i = sum_j softmax_j(f_Q(d_i)^T f_K(d_j)) * f_V(d_j)
        o_local,i  = sum_k softmax_k(conv(d)_i) * d_{i+k}                    k in KxK, zeros outside

    That the module exists and its global part are DGI's; the fusion is ours, after the same authors' CVPR 2020
    deblurring network. Also ours: ``P``, a 1x1 convolution that starts at zero, so that the module starts as the
    identity bit for bit; the factor 1/sqrt(channels per head) on the scores; the local softmax; the kernel sizes.

    Args:
        channels: Channels of the feature.
        heads: Attention heads; divides ``channels``.
        kernel_size: K of the local filter, odd.

    Raises:
        ConfigError: Channels or heads below one, heads that do not divide the channels, or an even kernel size.

    >>> attention = GlobalLocalAttention(8, heads=2)
    >>> feature = torch.randn(2, 8, 6, 5)
    >>> torch.equal(attention(feature), feature)
    True
    """

    def __init__(self, channels: int, heads: int = 1, kernel_size: int = 3) -> None:
        super().__init__()
        if channels < 1 or heads < 1 or channels % heads:
            raise ConfigError(
                "a global-local attention", f"channels={channels}, heads={heads}", "use heads that divide the channels"
            )
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ConfigError("a global-local attention", f"kernel_size={kernel_size}", "use an odd size such as 3")
        self.heads = heads
        self.kernel_size = kernel_size
        self.query = nn.Conv2d(channels, channels, 1)
        self.key = nn.Conv2d(channels, channels, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.filter = nn.Conv2d(channels, kernel_size * kernel_size, 3, padding=1)
        self.gate = nn.Conv2d(2 * channels, channels, 1)
        self.project = nn.Conv2d(channels, channels, 1)
        for parameter in self.project.parameters():
            nn.init.zeros_(parameter)

    def forward(self, feature: Tensor) -> Tensor:
        """Map ``d`` (B, C, H, W) to ``y`` of the same shape and dtype."""
        everywhere, around = self._global(feature), self._local(feature)
        share = self.gate(torch.cat((everywhere, around), 1)).sigmoid()
        fused: Tensor = self.project(share * everywhere + (1 - share) * around)
        return feature + fused.to(feature.dtype)

    def _global(self, feature: Tensor) -> Tensor:
        # (B, heads, N, C / heads), contiguous: torch falls back to the N x N matrix where the last stride is not 1.
        tokens = [
            part.flatten(2).unflatten(1, (self.heads, -1)).transpose(2, 3).contiguous()
            for part in (self.query(feature), self.key(feature), self.value(feature))
        ]
        # The fused kernels of attention have no second derivative.
        with sdpa_kernel(SDPBackend.MATH) if needs_double_backward() else nullcontext():
            out = F.scaled_dot_product_attention(*tokens)
        return out.transpose(2, 3).reshape(feature.shape)

    def _local(self, feature: Tensor) -> Tensor:
        size, (height, width) = self.kernel_size, feature.shape[2:]
        share = self.filter(feature).softmax(1)
        padded = F.pad(feature, [size // 2] * 4)
        out = torch.zeros_like(feature)
        for k in range(size * size):  # half the time of F.unfold, and no tensor of K*K times the feature
            y, x = divmod(k, size)
            out = out + share[:, k : k + 1] * padded[:, :, y : y + height, x : x + width]
        return out
