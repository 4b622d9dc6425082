"""The MAT generator."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inpaint_distill.adapters.mat.attention import TransformerBlock
from inpaint_distill.adapters.mat.style import MappingNetwork, ModulatedConv
from inpaint_distill.adapters.partial_conv.layers import PartialConv
from inpaint_distill.errors import ConfigError, InputError

__all__ = ["MATGenerator"]

_WINDOW = 8


class MaskedConv(nn.Module):
    """Convolve what is valid, with leaky ReLU, and pass the validity on as one channel."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = PartialConv(in_channels, out_channels, 3, stride)

    def forward(self, x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Map (B, in, H, W) and (B, 1, H, W) to a feature (B, out, H', W') and its validity (B, 1, H', W')."""
        x, valid = self.conv(x, valid.expand_as(x))
        return F.leaky_relu(x, 0.2), valid[:, :1]


class TransformerStage(nn.Module):
    """Change the resolution, attend in plain and in shifted windows, convolve, and add what came in."""

    def __init__(self, channels: int, heads: int, change: Literal["down", "up"] | None) -> None:
        super().__init__()
        self.change = change
        self.resample = MaskedConv(channels, channels, stride=2 if change == "down" else 1) if change else None
        self.blocks = nn.ModuleList(TransformerBlock(channels, heads, _WINDOW, shift) for shift in (0, _WINDOW // 2))
        self.conv = MaskedConv(channels, channels)

    def forward(
        self, x: Tensor, grid: tuple[int, int], valid: Tensor | None
    ) -> tuple[Tensor, tuple[int, int], Tensor | None]:
        """Map tokens (B, N, C) on a grid of (rows, columns) and their validity (B, N, 1) to the next.

        Without validity all tokens count.
        """
        if self.resample is not None:
            x, valid, grid = self._convolve(self.resample, x, valid, grid, scale=2 if self.change == "up" else 1)
        inside = x
        for block in self.blocks:
            inside, valid = block(inside, grid, valid)
        inside, valid, grid = self._convolve(self.conv, inside, valid, grid)
        return x + inside, grid, valid

    @staticmethod
    def _convolve(
        conv: MaskedConv, x: Tensor, valid: Tensor | None, grid: tuple[int, int], scale: int = 1
    ) -> tuple[Tensor, Tensor | None, tuple[int, int]]:
        """Run a convolution on tokens."""
        counted = torch.ones_like(x[..., :1]) if valid is None else valid
        maps = (F.interpolate(_to_map(each, grid), scale_factor=scale) for each in (x, counted))
        feature, mask = conv(*maps)
        return _to_tokens(feature), None if valid is None else _to_tokens(mask), (feature.shape[2], feature.shape[3])


class Refinement(nn.Module):
    """Refine an image by a U-Net whose decoder is modulated by a style."""

    def __init__(self, width: int, style: int) -> None:
        super().__init__()
        channels = [7, width, 2 * width, 4 * width]
        self.encoder = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=2 if level else 1, padding=1)
            for level, (before, after) in enumerate(pairwise(channels))
        )
        self.decoder = nn.ModuleList(
            ModulatedConv(after + before, before, style)
            for before, after in ((2 * width, 4 * width), (width, 2 * width))
        )
        self.head = nn.Conv2d(width, 3, 1)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Map (B, 7, H, W) and a style (B, style) to an image (B, 3, H, W)."""
        skips: list[Tensor] = []
        for level in self.encoder:
            x = F.leaky_relu(level(x), 0.2)
            skips.append(x)
        x = _mix(skips.pop(), style)
        for level in self.decoder:
            x = level(torch.cat([F.interpolate(x, scale_factor=2), skips.pop()], dim=1), style)
        image: Tensor = self.head(x)
        return image


class MATGenerator(nn.Module):
    """Inpaint with a mask-aware transformer (Li et al., CVPR 2022, figure 2). The discriminator is not included.

    Convolutions down to 1/4 resolution, transformer stages at 1/4, 1/8 and 1/4, convolutions back to an image, and a
    U-Net that refines it. Where the paper mixes half of its deepest features with noise made of the latent, the choice
    is drawn anew in every forward, in evaluation too, from torch's global generator. Three transformer stages for the
    paper's five, no noise maps and no truncation are ours.

    Args:
        width: Channels of the first stage; the paper's is 180.
        heads: Heads of the attention; the paper's is 6.

    Raises:
        ConfigError: If ``heads`` does not divide ``width``.
    """

    latent: ClassVar[int] = 64

    def __init__(self, width: int = 180, heads: int = 6) -> None:
        super().__init__()
        if width < 1 or heads < 1 or width % heads:
            found = "heads that do not divide the channels"
            raise ConfigError(f"width={width}, heads={heads}", found, "use a multiple of heads, such as 24 and 4")
        self.mapping = MappingNetwork(self.latent, width)
        self.head = nn.ModuleList([MaskedConv(4, width), MaskedConv(width, width, 2), MaskedConv(width, width, 2)])
        self.body = nn.ModuleList(TransformerStage(width, heads, change) for change in (None, "down", "up"))
        self.tail = nn.ModuleList(ModulatedConv(2 * width, width, width) for _ in range(2))
        self.to_image = nn.Conv2d(width, 3, 1)
        self.refine = Refinement(width, width)

    def forward(self, image: Tensor, known: Tensor, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Restore an image.

        Args:
            image: (B, 3, H, W) in [-1, 1], any value in the hole. Sides are multiples of 64; or both are 16 or 32.
            known: (B, 1, H, W), 1 where the image is known, 0 in the hole.
            latent: (B, 64), normally distributed.

        Returns:
            The refined image and that of the first stage, each (B, 3, H, W), with the known pixels put in.

        Raises:
            InputError: If the size does not fit.
        """
        sides = (image.shape[2], image.shape[3])
        if any(side % 64 for side in sides) and sides not in ((16, 16), (32, 32)):
            asked = "an image whose sides are multiples of 64, or 16 x 16, or 32 x 32"
            raise InputError(asked, f"shape {tuple(image.shape)}", "pad or resize the image")
        style = self.mapping(latent)
        emptied = image * known
        first = self._first_stage(emptied, known, style) * (1 - known) + emptied
        x = self.refine(torch.cat([known - 0.5, first, emptied], dim=1), style)
        return x * (1 - known) + emptied, first

    def _first_stage(self, emptied: Tensor, known: Tensor, style: Tensor) -> Tensor:
        x, valid = torch.cat([known - 0.5, emptied], dim=1), known
        skips: list[Tensor] = []
        for conv in self.head:
            x, valid = conv(x, valid)
            skips.append(x)
        grid = (x.shape[2], x.shape[3])
        shallow, grid, mask = self.body[0](_to_tokens(x), grid, _to_tokens(valid))
        deep, small, _ = self.body[1](shallow, grid, mask)
        mixed = _to_tokens(_mix(_to_map(deep, small), style))
        x = _to_map(self.body[2](mixed, small, None)[0] + shallow, grid)
        skips.pop()
        for level in self.tail:
            x = level(torch.cat([F.interpolate(x, scale_factor=2), skips.pop()], dim=1), style)
        image: Tensor = self.to_image(x)
        return image


def _mix(x: Tensor, style: Tensor) -> Tensor:
    """Replace a random half of a feature (B, C, H, W) by a style, repeated over its channels."""
    keep = torch.bernoulli(torch.full_like(x, 0.5))
    noise = F.interpolate(style.unsqueeze(1), x.shape[1])[:, 0, :, None, None]
    return x * keep + noise * (1 - keep)


def _to_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    return tokens.transpose(1, 2).reshape(tokens.shape[0], -1, *grid)


def _to_tokens(map: Tensor) -> Tensor:
    return map.flatten(2).transpose(1, 2)
