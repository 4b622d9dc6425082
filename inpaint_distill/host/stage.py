"""What is tapped: one feature of a host's encoder, and how to read it as a map (ours)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from inpaint_distill.host.tree import Path, format_path

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Layout", "Stage", "level_of", "token_grid"]

Layout = Literal["NCHW", "NHWC", "tokens"]
_TOLERANCE = 0.2  # of an octave: convolutions without padding and odd sizes shift a resolution by a few pixels


def level_of(size: tuple[int, int], image_size: tuple[int, int]) -> int | None:
    """Return the pyramid level of a map (0 = image resolution), or ``None`` where it does not share the image's aspect.

    >>> level_of((8, 12), (64, 96)), level_of((8, 8), (64, 96))
    (3, None)
    """
    if min(size) < 1:
        return None
    octaves = [math.log2(full / part) for full, part in zip(image_size, size, strict=True)]
    level = round(sum(octaves) / 2)
    # A map of a few pixels cannot show the aspect ratio exactly: half a pixel of rounding is allowed there.
    slack = [max(_TOLERANCE, math.log2(1 + 0.5 / part)) for part in size]
    if level < 0 or any(abs(octave - level) > room for octave, room in zip(octaves, slack, strict=True)):
        return None
    return level


def token_grid(tokens: int, image_size: tuple[int, int]) -> tuple[int, int] | None:
    """Return the (rows, columns) of a token sequence that covers the image at a power-of-two stride, or ``None``.

    >>> token_grid(96, (64, 96))
    (8, 12)
    """
    height, width = image_size
    for level in range(height.bit_length()):
        grid = (-(-height // 2**level), -(-width // 2**level))
        if grid[0] * grid[1] == tokens:
            return grid
    return None


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One feature of an encoder.

    Attributes:
        name: Module whose output holds the feature, as in ``named_modules()``.
        call: Which call of the module within one forward, from 0.
        select: Where the feature is in the module's output: keys and indices, outermost first; empty for a tensor.
        layout: ``NCHW``, ``NHWC``, or ``tokens`` (B, N, C) over a grid with the image's aspect ratio.
        clone: Keep a copy because a later operation overwrites the feature in place.
        channels: Number of channels.
        size: Height and width seen in the dry run, in pixels.
        stride: Image pixels per feature pixel.
    """

    name: str
    call: int = 0
    select: Path = ()
    layout: Layout = "NCHW"
    clone: bool = False
    channels: int = 0
    size: tuple[int, int] = (0, 0)
    stride: int = 0

    @property
    def label(self) -> str:
        """Name the stage as error texts and tables do: ``enc_1[0]`` or ``bn2 (call 3)``."""
        return f"{self.name}{format_path(self.select)}" + (f" (call {self.call})" if self.call else "")

    def as_map(self, feature: Tensor, image_size: tuple[int, int]) -> Tensor:
        """View the feature as (B, C, H, W)."""
        if self.layout == "NHWC":
            return feature.permute(0, 3, 1, 2)
        if self.layout == "tokens":
            rows, columns = token_grid(feature.shape[1], image_size) or (feature.shape[1], 1)
            return feature.transpose(1, 2).reshape(feature.shape[0], -1, rows, columns)
        return feature

    def as_output(self, feature: Tensor) -> Tensor:
        """Bring a map (B, C, H, W) back to the layout in which the module puts it out."""
        if self.layout == "NHWC":
            return feature.permute(0, 2, 3, 1)
        if self.layout == "tokens":
            return feature.flatten(2).transpose(1, 2)
        return feature
