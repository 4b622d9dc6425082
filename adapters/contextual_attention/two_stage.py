"""The coarse-to-fine layout that DeepFill v1 and v2 share; only their convolutions and their output differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from inpaint_distill.adapters.contextual_attention.attention import ContextualAttention
from inpaint_distill.errors import ConfigError, InputError

__all__ = ["CoarseNet", "ConvFactory", "RefineNet", "TwoStageGenerator"]

ConvFactory = Callable[..., nn.Module]
"""``conv(in_channels, out_channels, kernel_size=3, stride=1, dilation=1)``: a convolution with its activation."""


def _encoder(width: int, conv: ConvFactory) -> nn.Sequential:
    """Stack three levels at full, 1/2 and 1/4 resolution with 1, 2 and 4 times ``width`` channels, one child each.

    Strided convolutions keep the number of channels, as in the released refinement networks; the released coarse
    networks widen there already.
    """
    return nn.Sequential(
        conv(5, width, kernel_size=5),
        nn.Sequential(conv(width, width, stride=2), conv(width, 2 * width)),
        nn.Sequential(
            conv(2 * width, 2 * width, stride=2),
            conv(2 * width, 4 * width),
            conv(4 * width, 4 * width),
        ),
    )


def _dilated(channels: int, dilations: Sequence[int], conv: ConvFactory) -> nn.Sequential:
    """Stack one convolution per dilation."""
    return nn.Sequential(*(conv(channels, channels, dilation=dilation) for dilation in dilations))


def _decoder(in_channels: int, width: int, conv: ConvFactory) -> nn.Sequential:
    """Stack the way back from 1/4 resolution to an image that is not squashed yet."""
    return nn.Sequential(
        conv(in_channels, 4 * width),
        conv(4 * width, 4 * width),
        nn.Upsample(scale_factor=2, mode="nearest"),
        conv(4 * width, 2 * width),
        conv(2 * width, 2 * width),
        nn.Upsample(scale_factor=2, mode="nearest"),
        conv(2 * width, width),
        conv(width, width // 2),
        nn.Conv2d(width // 2, 3, 3, padding=1),
    )


class CoarseNet(nn.Module):
    """Fill the hole roughly: an encoder, a dilated bottleneck and a decoder without skip connections."""

    def __init__(self, width: int, dilations: Sequence[int], conv: ConvFactory) -> None:
        super().__init__()
        self.encoder = _encoder(width, conv)
        self.dilated = _dilated(4 * width, dilations, conv)
        self.decoder = _decoder(4 * width, width, conv)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, 5, H, W) to an image (B, 3, H, W)."""
        image: Tensor = self.decoder(self.dilated(self.encoder(x)))
        return image


class RefineNet(nn.Module):
    """Refine the coarse image with two branches: one dilates its view, the other copies from known places."""

    def __init__(self, width: int, dilations: Sequence[int], conv: ConvFactory) -> None:
        super().__init__()
        self.encoder = _encoder(width, conv)
        self.dilated = _dilated(4 * width, dilations, conv)
        self.attention_encoder = _encoder(width, conv)
        self.attention = ContextualAttention()
        self.attention_head = nn.Sequential(conv(4 * width, 4 * width), conv(4 * width, 4 * width))
        self.decoder = _decoder(8 * width, width, conv)

    def forward(self, x: Tensor, hole: Tensor) -> Tensor:
        """Map (B, 5, H, W) and the hole (B, 1, H, W) to an image (B, 3, H, W)."""
        # The stages first, then the attention: a forward that is run for them alone can stop there.
        encoded = self.encoder(x)
        copied = self.attention_head(self.attention(self.attention_encoder(x), hole))
        image: Tensor = self.decoder(torch.cat([self.dilated(encoded), copied], dim=1))
        return image


class TwoStageGenerator(nn.Module):
    """Inpaint coarse to fine (Yu et al., CVPR 2018, figure 2).

    Both stages see five channels: an image, ones (they let a convolution tell the border from zero padding) and the
    hole. The refinement network's image is the known pixels with the coarse result in the hole.

    Args:
        width: Channels of the first level's features; even.
        dilations: Dilations of the bottleneck at 1/4 resolution.
        conv: Builds every convolution but the last ones.
        squash: Brings both results to [-1, 1].

    Raises:
        ConfigError: If ``width`` is odd or not positive.
    """

    def __init__(
        self, width: int, dilations: Sequence[int], conv: ConvFactory, squash: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__()
        if width < 2 or width % 2:
            raise ConfigError(f"{width} channels at the first level", "an odd or too small number", "use 2, 4, 6, ...")
        self.coarse = CoarseNet(width, dilations, conv)
        self.refine = RefineNet(width, dilations, conv)
        self._squash = squash

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Restore an image.

        Args:
            x: (B, 5, H, W): image in [-1, 1] with 0 in the hole, ones, hole (1 in the hole); H, W multiples of 8.

        Returns:
            The coarse and the fine image, each (B, 3, H, W) in [-1, 1] and not composited.

        Raises:
            InputError: If the shape does not fit.
        """
        if x.ndim != 4 or x.shape[1] != 5 or x.shape[2] % 8 or x.shape[3] % 8:
            raise InputError(
                "input (B, 5, H, W) with H and W multiples of 8",
                f"shape {tuple(x.shape)}",
                "concatenate [masked image, ones, hole] and pad or crop to multiples of 8",
            )
        image, ones, hole = x[:, :3], x[:, 3:4], x[:, 4:]
        coarse = self._squash(self.coarse(x))
        filled = image * (1 - hole) + coarse * hole
        fine = self._squash(self.refine(torch.cat([filled, ones, hole], dim=1), hole))
        return coarse, fine
