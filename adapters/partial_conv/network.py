"""The partial-convolution U-Net."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inpaint_distill.adapters.partial_conv.layers import PartialConv
from inpaint_distill.errors import ConfigError, InputError

__all__ = ["PartialConvUNet"]


class EncoderStage(nn.Module):
    """Halve the resolution with a partial convolution, BatchNorm and ReLU; the mask travels along."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, normalise: bool = True) -> None:
        super().__init__()
        self.conv = PartialConv(in_channels, out_channels, kernel_size, stride=2, bias=not normalise)
        self.norm = nn.BatchNorm2d(out_channels) if normalise else nn.Identity()

    def forward(self, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Map (feature, mask) of (B, in, H, W) to (feature, mask) of (B, out, H/2, W/2)."""
        feature, mask = self.conv(*state)
        return F.relu(self.norm(feature)), mask


class DecoderStage(nn.Module):
    """Double the resolution, join the skip and its mask, and convolve with BatchNorm and leaky ReLU."""

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = PartialConv(in_channels + skip_channels, out_channels, kernel_size=3, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, state: tuple[Tensor, Tensor], skip: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Map (feature, mask) of (B, in, H/2, W/2) and a skip at (H, W) to (feature, mask) of (B, out, H, W)."""
        feature, mask = self.conv(*_join(state, skip))
        return F.leaky_relu(self.norm(feature), 0.2), mask


class PartialConvUNet(nn.Module):
    """Inpaint with partial convolutions (Liu et al., ECCV 2018, table 1).

    Kernels of 7, 5, 5 and then 3 pixels; channels double up to ``8 width``. The last layer joins the input itself.

    Args:
        width: Channels of the first stage; the paper's is 64.
        levels: Number of stages, each at half the resolution of the one before; the paper's is 8, for 512 px.

    Raises:
        ConfigError: If a number is below 1.
    """

    def __init__(self, width: int = 64, levels: int = 8) -> None:
        super().__init__()
        if width < 1 or levels < 1:
            raise ConfigError(f"width={width}, levels={levels}", "a number below 1", "use positive numbers")
        channels = [3, *(width * 2 ** min(level, 3) for level in range(levels))]
        kernels = [7, 5, 5, *[3] * levels]
        self.encoder = nn.ModuleList(
            EncoderStage(channels[level], channels[level + 1], kernels[level], normalise=level > 0)
            for level in range(levels)
        )
        self.decoder = nn.ModuleList(
            DecoderStage(channels[level + 1], channels[level], channels[level]) for level in reversed(range(1, levels))
        )
        self.head = PartialConv(channels[1] + 3, 3, kernel_size=3)

    def forward(self, image: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """Restore an image.

        Args:
            image: (B, 3, H, W) in [-1, 1], any value in the hole; H and W multiples of 2^levels.
            known: (B, 1, H, W) or (B, 3, H, W), 1 where the image is known, 0 in the hole.

        Returns:
            The image (B, 3, H, W) in [-1, 1], not composited (tanh is ours, the paper has no last activation), and
            its mask (B, 3, H, W).

        Raises:
            InputError: If the size does not fit.
        """
        multiple = 2 ** len(self.encoder)
        if image.shape[2] % multiple or image.shape[3] % multiple:
            raise InputError(
                f"an image whose sides are multiples of {multiple}",
                f"shape {tuple(image.shape)}",
                "pad or crop the image, or build the network with fewer levels",
            )
        states = [(image, known.expand_as(image))]
        for stage in self.encoder:
            states.append(stage(states[-1]))
        state = states.pop()
        for block in self.decoder:
            state = block(state, states.pop())
        restored, mask = self.head(*_join(state, states.pop()))
        return torch.tanh(restored), mask


def _join(state: tuple[Tensor, Tensor], skip: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Double the size of (feature, mask) by nearest neighbour and concatenate the skip's."""
    feature, mask = (F.interpolate(tensor, scale_factor=2, mode="nearest") for tensor in state)
    return torch.cat([feature, skip[0]], dim=1), torch.cat([mask, skip[1]], dim=1)
