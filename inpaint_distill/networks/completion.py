"""The completion block: rewrites the hole of a feature, and nothing else."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inpaint_distill.errors import ConfigError
from inpaint_distill.networks.deformable import adaptive_convolution
from inpaint_distill.networks.fill import pull_push

__all__ = ["CompletionBlock"]


class CompletionBlock(nn.Module):
    """Complete the hole of a feature from the pixels around it (DGI, completion block).

    ::

        x     = x' * (1 - M) + F(x') * M
        F(x') = x' + B(x')                                                  (the residual is ours)

        B(x')   = W * SiLU(f(x', P, M))                                     (plain, ours)
                  P = pull_push(x', 1 - M)
        B(x')_j = sum_k V_{j,k} * W_k * x'_{j + k + D_{j,k}}                (adaptive, DGI)
                  V = f_ker(x', M),  D = f_off(x', M) / 10

    The plain block is shown the hole filled in from all around, however large it is, and has to improve on that
    (:func:`~inpaint_distill.networks.fill.pull_push`). It costs less than the adaptive one; which of them gains more
    depends on the host (docs/rounds.md). ``f``, ``f_ker`` and ``f_off`` are convolutions (3x3 is ours), which are told
    where the hole is (ours: DGI's see ``x'`` alone, in which an offset has to guess on which side the known pixels
    are). The offsets learn a tenth as fast as the rest (ours, after the lower rate that deformable convolutions are
    usually given): at the host's rate they can run away.

    ``W`` and ``D`` start at zero and ``V`` at one, so the block starts as the identity, bit for bit, and ``W`` learns
    from the first step. A pixel where ``M`` is 0 never changes, whatever the branch holds.

    Args:
        channels: Channels of the feature.
        kernel_size: K, odd.
        adaptive: Whether ``B`` is DGI's, with a kernel and offsets per pixel.
        hidden: Channels between the two convolutions of the plain block; as many as the feature's by default.
        interpolate: Whether ``F(x')`` is ``P + B(x')`` instead: the block starts by filling the hole in from around it.

    Raises:
        ConfigError: Fewer than one channel, or a kernel size that is not odd and positive.

    >>> block = CompletionBlock(8)
    >>> feature, hole = torch.randn(2, 8, 16, 16), torch.ones(2, 1, 64, 64)
    >>> torch.equal(block(feature, hole), feature)
    True
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int = 3,
        *,
        adaptive: bool = False,
        hidden: int | None = None,
        interpolate: bool = False,
    ) -> None:
        super().__init__()
        if channels < 1:
            raise ConfigError("a completion block", f"channels={channels}", "give the feature's channels, 1 or more")
        if hidden is not None and (hidden < 1 or adaptive):
            fix = "give 1 or more, and none to an adaptive block"
            raise ConfigError("a completion block", f"hidden={hidden}, adaptive={adaptive}", fix)
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ConfigError("a completion block", f"kernel_size={kernel_size}", "use an odd size such as 3")
        hidden = hidden or channels
        self.weight = nn.Parameter(torch.zeros(channels, hidden, kernel_size, kernel_size))
        self.adaptive, self.interpolate = adaptive, interpolate
        if adaptive:
            points = kernel_size * kernel_size
            self.kernel = nn.Conv2d(channels + 1, points, 3, padding=1)
            self.offset = nn.Conv2d(channels + 1, 2 * points, 3, padding=1)
            for parameter in (*self.kernel.parameters(), *self.offset.parameters()):
                nn.init.zeros_(parameter)
        else:
            self.hidden = nn.Conv2d(2 * channels + 1, hidden, kernel_size, padding=kernel_size // 2)

    @staticmethod
    def check_size(size: tuple[int, int]) -> None:
        """Raise where a feature of this height and width has no pixel to complete another from.

        Raises:
            ConfigError: The feature is a single pixel.
        """
        if tuple(size) == (1, 1):
            raise ConfigError(
                "a completion block on a feature of 1x1",
                "no neighbour from which its offsets could fetch anything",
                "leave this stage out of `completion_levels`, or train with larger images",
            )

    def forward(self, feature: Tensor, hole: Tensor) -> Tensor:
        """Rewrite the hole.

        Args:
            feature: ``x'``, (B, C, H, W).
            hole: (B or 1, 1, h, w) of any resolution, 1 in the hole. Its area average over each pixel is ``M``.

        Returns:
            ``x``, in the shape, dtype and memory format of ``feature``.

        Raises:
            ConfigError: The feature is a single pixel.
        """
        height, width = feature.shape[2:]
        self.check_size((height, width))
        share = F.adaptive_avg_pool2d(hole.float(), (height, width)).expand(feature.shape[0], -1, -1, -1)
        with torch.autocast(feature.device.type, enabled=False):
            wide = feature.to(torch.promote_types(feature.dtype, torch.float32))
            filled = wide if self.adaptive and not self.interpolate else pull_push(wide, 1 - share)
            branch = self._adapted(wide, share) if self.adaptive else self._convolved(wide, share, filled)
            if self.interpolate:
                branch = branch + (filled - wide)
            completed = wide + share * branch
        # Not by `share` alone: 0 times an overflow is NaN.
        return torch.where(share > 0, completed.to(feature.dtype), feature)

    def _convolved(self, feature: Tensor, share: Tensor, filled: Tensor) -> Tensor:
        seen = torch.cat([feature, filled, share], dim=1).to(self.weight.dtype)
        if seen.device.type == "cpu":  # the same but for rounding, and faster, above all backward
            seen = seen.contiguous(memory_format=torch.channels_last)
        hidden = F.silu(self.hidden(seen)).to(feature.dtype)
        return F.conv2d(hidden, self.weight.to(feature.dtype), padding=self.weight.shape[-1] // 2)

    def _adapted(self, feature: Tensor, share: Tensor) -> Tensor:
        layers = (self.kernel, self.offset)  # in one convolution
        weight, bias = (torch.cat([getattr(layer, name) for layer in layers]) for name in ("weight", "bias"))
        seen = torch.cat([feature.to(weight.dtype), share.to(weight.dtype)], dim=1)
        both = F.conv2d(seen, weight, bias, padding=1)
        kernel, offset = torch.split(both, [layer.out_channels for layer in layers], dim=1)
        # A kernel linear in x' would make the branch grow with its square; the sigmoid of DCNv2 bounds it. Doubled, it
        # starts at 1: the block starts as a plain convolution, whose weight has its full gradient (ours).
        return adaptive_convolution(feature, self.weight, offset / 10, 2 * kernel.sigmoid(), share > 0)
