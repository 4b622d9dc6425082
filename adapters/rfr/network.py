"""The RFR generator."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inpaint_distill.adapters.partial_conv.layers import PartialConv
from inpaint_distill.adapters.rfr.attention import KnowledgeConsistentAttention, Memory
from inpaint_distill.errors import ConfigError, InputError

__all__ = ["RFRGenerator"]

_MULTIPLE = 16


class AreaIdentification(nn.Module):
    """Move the border of the known area inward with two partial convolutions (section 3.1)."""

    def __init__(self, in_channels: int, channels: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = PartialConv(in_channels, channels, kernel_size, stride, bias=False)
        self.conv2 = PartialConv(channels, channels, kernel_size, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, feature: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """Map a feature and its mask of (B, in, H, W) to (B, channels, H / stride, W / stride)."""
        feature, known = self.conv2(*self.conv1(feature, known))
        # In place, as released: what the norm puts out is overwritten.
        return F.leaky_relu(self.norm(feature), 0.2, inplace=True), known


class FeatureReasoning(nn.Module):
    """Fill the identified area with an encoder-decoder, attention in between (section 3.2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        channels = [width * 2**level for level in range(4)]
        self.encoder = nn.ModuleList(_conv(channels[level], channels[level + 1], stride=2) for level in range(3))
        self.bottom = nn.Sequential(*(_conv(channels[3], channels[3], dilation=2) for _ in range(2)))
        self.decoder = nn.ModuleList(
            _conv(channels[level + 1] + channels[level], channels[level]) for level in reversed(range(3))
        )
        self.attention = KnowledgeConsistentAttention(channels[2])

    def forward(self, feature: Tensor, known: Tensor, last: Memory | None) -> tuple[Tensor, Memory]:
        """Map (B, width, H, W) to the same shape.

        Args:
            feature: The feature.
            known: (B, 1, H, W), 1 where it is known by now.
            last: What the last recurrence returned; ``None`` in the first.
        """
        skips = [feature]
        for level in self.encoder:
            skips.append(level(skips[-1]))
        x = self.bottom(skips.pop())
        first, *rest = self.decoder
        x, memory = self.attention(first(_join(x, skips.pop())), known, last)
        for level in rest:
            x = level(_join(x, skips.pop()))
        return x, memory


class RFRGenerator(nn.Module):
    """Inpaint by recurrent feature reasoning (Li et al., CVPR 2020), at half the resolution of the image.

    Each recurrence identifies the next ring of the hole and fills it; the results are averaged over the recurrences
    in which a place was known (Eq. 3). All recurrences share their weights. Dilations, the order of the tail and
    resizing by nearest neighbours are ours.

    Args:
        width: Channels at half resolution; the paper's is 64.
        iterations: Number of recurrences; the paper's is 6.

    Raises:
        ConfigError: If a number is below 1.
    """

    def __init__(self, width: int = 64, iterations: int = 6) -> None:
        super().__init__()
        if width < 1 or iterations < 1:
            raise ConfigError(f"width={width}, iterations={iterations}", "a number below 1", "use positive numbers")
        self.iterations = iterations
        self.enter = AreaIdentification(3, width, kernel_size=7, stride=2)
        self.identify = AreaIdentification(width, width, kernel_size=7)
        self.reason = FeatureReasoning(width)
        self.tail = _conv(width + 3, width)
        self.head = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, image: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """Restore an image.

        Args:
            image: (B, 3, H, W) in [0, 1], 0 in the hole; H and W multiples of 16.
            known: (B, 1, H, W) or (B, 3, H, W), 1 where the image is known, 0 in the hole.

        Returns:
            The image (B, 3, H, W), not composited and, as released, not clipped to [0, 1]; and what of it had been
            reached after the last recurrence, (B, 1, H, W).

        Raises:
            InputError: If the size does not fit.
        """
        if image.shape[2] % _MULTIPLE or image.shape[3] % _MULTIPLE:
            asked = f"an image whose sides are multiples of {_MULTIPLE}"
            raise InputError(asked, f"shape {tuple(image.shape)}", "pad or crop the image")
        feature, reached = self.enter(image, known.expand_as(image))
        total, count = torch.zeros_like(feature), torch.zeros_like(feature)
        memory: Memory | None = None
        for _ in range(self.iterations):
            feature, reached = self.identify(feature, reached)
            feature, memory = self.reason(feature, reached[:, :1], memory)
            feature = feature * reached
            total, count = total + feature, count + reached
        x = self.tail(_join(total / count.clamp(min=1), image))
        return self.head(x), F.interpolate(reached[:, :1], scale_factor=2)


def _conv(in_channels: int, out_channels: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    """Convolve with BatchNorm and leaky ReLU."""
    conv = nn.Conv2d(in_channels, out_channels, 3, stride, dilation, dilation, bias=False)
    nn.init.kaiming_normal_(conv.weight, 0.2)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.LeakyReLU(0.2, inplace=True))


def _join(x: Tensor, skip: Tensor) -> Tensor:
    """Double the size of ``x`` and concatenate the skip."""
    return torch.cat([F.interpolate(x, scale_factor=2), skip], dim=1)
