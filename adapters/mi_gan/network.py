"""The MI-GAN generator."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from inpaint_distill.adapters.mi_gan.layers import ReparametrisedConv, SeparableConv
from inpaint_distill.errors import ConfigError, InputError

__all__ = ["MIGANGenerator"]

_LOWEST = 4


class EncoderBlock(nn.Module):
    """Work at one resolution, then go on to the next."""

    def __init__(self, in_channels: int, out_channels: int, down: bool) -> None:
        super().__init__()
        self.conv1 = SeparableConv(in_channels, in_channels)
        self.conv2 = SeparableConv(in_channels, out_channels, down=down)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map (B, in, H, W) to what goes on, (B, out, H/2, W/2), and the feature of this block, (B, in, H, W)."""
        feature = self.conv1(x)
        return self.conv2(feature), feature


class SynthesisBlock(nn.Module):
    """Double the resolution, add the encoder's feature, and draw on the image so far."""

    def __init__(self, in_channels: int, out_channels: int, resolution: int) -> None:
        super().__init__()
        first = resolution == _LOWEST
        self.conv1 = SeparableConv(in_channels, out_channels, up=not first, resolution=None if first else resolution)
        self.conv2 = SeparableConv(out_channels, out_channels, resolution=None if first else resolution)
        self.to_image = ReparametrisedConv(out_channels, 3, 1)

    def forward(self, x: Tensor, feature: Tensor, image: Tensor | None) -> tuple[Tensor, Tensor]:
        """Map (B, in, H, W), a feature (B, out, H', W') and an image of half its size to the next two."""
        x = self.conv2(self.conv1(x) + feature)
        drawn = self.to_image(x)
        if image is not None:
            drawn = drawn.add_(F.interpolate(image, scale_factor=2, mode="bilinear", align_corners=False))
        return x, drawn


class MIGANGenerator(nn.Module):
    """Inpaint with separable convolutions (Sargsyan et al., ICCV 2023, figure 2). The discriminator is not included.

    Every resolution down to 4 px has a block in the encoder and one in the synthesis, each of which adds to the image.
    Resampling without learnt filters is ours.

    Args:
        width: Channels at full resolution; the paper's are 128 at 256 px. They double up to ``4 width``.
        resolution: Side of the images, a power of two; the noise is made for it, so that it takes no other.

    Raises:
        ConfigError: If ``width`` is below 1, or ``resolution`` no power of two from 8 on.
    """

    def __init__(self, width: int = 128, resolution: int = 256) -> None:
        super().__init__()
        if width < 1 or resolution < 2 * _LOWEST or resolution & (resolution - 1):
            found = "no channels, or a side that is no power of two from 8 on"
            raise ConfigError(f"width={width}, resolution={resolution}", found, "use width >= 1 and 8, 16, 32, ...")
        self.resolution = resolution
        sides = [resolution >> level for level in range(resolution.bit_length() - _LOWEST.bit_length() + 1)]
        channels = [width * 2 ** min(level, 2) for level in range(len(sides))]
        following = [*channels[1:], channels[-1]]
        self.enter = nn.Conv2d(4, width, 1)
        self.encoder = nn.ModuleList(
            EncoderBlock(here, below, down=side > _LOWEST)
            for here, below, side in zip(channels, following, sides, strict=True)
        )
        self.synthesis = nn.ModuleList(
            SynthesisBlock(below, here, side)
            for here, below, side in zip(channels[::-1], following[::-1], sides[::-1], strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Restore an image.

        Args:
            x: (B, 4, H, W): 0.5 where known and -0.5 in the hole, then the image in [-1, 1] with 0 in the hole; H and W
                are the resolution.

        Returns:
            The image (B, 3, H, W), not composited and, as released, not clipped to [-1, 1].

        Raises:
            InputError: If the shape does not fit.
        """
        if x.ndim != 4 or x.shape[1:] != (4, self.resolution, self.resolution):
            asked = f"a known mask and an image (B, 4, {self.resolution}, {self.resolution})"
            fix = "resize the image, or build the network with another resolution"
            raise InputError(asked, f"shape {tuple(x.shape)}", fix)
        x = F.leaky_relu(self.enter(x), 0.2, inplace=True)
        features = []
        for block in self.encoder:
            x, feature = block(x)
            features.append(feature)
        image: Tensor
        first, *rest = self.synthesis
        x, image = first(x, features.pop(), None)
        for block in rest:
            x, image = block(x, features.pop(), image)
        return image
