"""A U-Net over a timm backbone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inpaint_distill.adapters.unet.encoder import timm_stages
from inpaint_distill.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["InpaintUNet"]


class UpBlock(nn.Module):
    """Enlarge to the size of a skip, concatenate it and convolve twice (Ronneberger et al., MICCAI 2015)."""

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv2d(in_channels + skip_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Map (B, in, h, w) and the skip (B, skip, H, W) to (B, out, H, W)."""
        # Nearest, because the backward of bilinear interpolation is not deterministic on CUDA.
        x = F.interpolate(x, size=skip.shape[-2:], mode="nearest")
        output: Tensor = self.convs(torch.cat([x, skip], dim=1))
        return output


class InpaintUNet(nn.Module):
    """Inpaint with a plain U-Net whose encoder is a timm backbone (ours).

    The decoder follows the resolutions that the encoder has, whatever its strides; its last block joins the input
    itself at full resolution.

    Args:
        backbone: Name of a timm model with (B, C, H, W) features.
        levels: Number of encoder features used, one per resolution. Four of resnet18 end at stride 16: a fifth would
            leave one pixel of a 32 px image, which BatchNorm cannot train on with a single image.
        width: Channels of the last decoder block; every block below has twice as many, up to its skip's channels.
        pretrained: ``True`` loads timm's weights into the encoder, a path loads a file of them.

    Raises:
        ConfigError: If the backbone does not exist or has no such features, or ``width`` is not positive.
    """

    def __init__(
        self, backbone: str = "resnet18", levels: int = 4, width: int = 32, pretrained: bool | str | Path = False
    ) -> None:
        super().__init__()
        if width < 1 or levels < 1:
            raise ConfigError(f"width={width}, levels={levels}", "a number below 1", "use positive numbers")
        self.encoder, channels = timm_stages(backbone, 4, levels, pretrained)
        skips = [4, *channels[:-1]]
        decoder = []
        below = channels[-1]
        for level in reversed(range(levels)):
            out_channels = min(width * 2**level, channels[level])
            decoder.append(UpBlock(below, skips[level], out_channels))
            below = out_channels
        self.decoder = nn.ModuleList(decoder)
        self.head = nn.Conv2d(below, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Restore an image.

        Args:
            x: (B, 4, H, W): image in [-1, 1] with 0 in the hole, hole (1 in the hole).

        Returns:
            (B, 3, H, W) in [-1, 1], not composited.
        """
        skips = [x]
        for stage in self.encoder:
            skips.append(stage(skips[-1]))
        feature = skips.pop()
        for block, skip in zip(self.decoder, reversed(skips), strict=True):
            feature = block(feature, skip)
        return torch.tanh(self.head(feature))
