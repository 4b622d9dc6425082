"""What is tapped: one feature of a host's encoder, and how to read it as a map (ours)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from inpaint_distill.host.tree import Path, format_path, rebuild, select

__all__ = ["MAX_PREFIX", "Layout", "Selector", "Stage", "level_of", "token_grid"]

Layout = Literal["NCHW", "NHWC", "tokens"]
Selector: TypeAlias = Path | tuple[Path, ...] | Callable[[Any], Tensor]
MAX_PREFIX = 8
"""Most tokens before those of a grid: a class token, a distillation token, registers."""

_TOLERANCE = 0.2  # of an octave: convolutions without padding shift a resolution by a few pixels


def level_of(size: tuple[int, int], image_size: tuple[int, int]) -> int | None:
    """Return the pyramid level of a map (0 = image resolution), or ``None`` where it does not share the image's aspect.

    >>> level_of((8, 12), (64, 96)), level_of((8, 8), (64, 96))
    (3, None)
    >>> level_of((5, 7), (17, 25)), level_of((3, 4), (17, 25))
    (2, 3)
    """
    if min(size) < 1:
        return None
    octaves = [math.log2(full / part) for full, part in zip(image_size, size, strict=True)]
    middle = sum(octaves) / 2
    for level in sorted({math.floor(middle), math.ceil(middle)}, key=lambda each: abs(middle - each)):
        fits = (
            # However often an odd size was halved and rounded, up or down, less than one pixel has come of it.
            abs(octave - level) <= _TOLERANCE or abs(part - full / 2**level) < 1
            for octave, part, full in zip(octaves, size, image_size, strict=True)
        )
        if level >= 0 and all(fits):
            return level
    return None


def token_grid(tokens: int, image_size: tuple[int, int]) -> tuple[int, int] | None:
    """Return the (rows, columns) of a token sequence that covers the image at a power-of-two stride, or ``None``.

    Odd sizes are halved upwards, as convolutions do, or downwards, as pooling does.

    >>> token_grid(96, (64, 96)), token_grid(20, (18, 20))
    ((8, 12), (4, 5))
    """
    height, width = image_size
    for level in range(height.bit_length()):
        for grid in ((-(-height // 2**level), -(-width // 2**level)), (height // 2**level, width // 2**level)):
            if grid[0] * grid[1] == tokens:
                return grid
    return None


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One feature of an encoder.

    Attributes:
        name: Module whose output holds the feature, as in ``named_modules()``.
        call: Which call of the module within one forward, from 0; -1 is the last, settled when it is planned.
        select: Where the feature is in the module's output. Keys and indices, outermost first, empty for a tensor;
            several such paths, ``((0,), (1,))``, for tensors of one size that are concatenated; or a function of the
            output that returns one of its tensors.
        layout: ``NCHW``, ``NHWC``, or ``tokens`` (B, N, C) over a grid.
        prefix: Tokens before those of the grid, such as a class token.
        grid: Rows and columns of the tokens where they do not cover the image at a power-of-two stride.
        mask: Where a mask that travels with the feature is in the output (partial convolutions); ``None`` for none.
        clone: Keep a copy because a later operation overwrites the feature in place.
        channels: Number of channels.
        size: Height and width seen in the dry run, in pixels.
        stride: Image pixels per feature pixel.
    """

    name: str
    call: int = 0
    select: Selector = ()
    layout: Layout = "NCHW"
    prefix: int = 0
    grid: tuple[int, int] | None = None
    mask: Path | None = None
    clone: bool = False
    channels: int = 0
    size: tuple[int, int] = (0, 0)
    stride: int = 0

    @property
    def label(self) -> str:
        """Name the stage as error texts and tables do: ``enc_1[0]``, ``model.4[0]+[1]`` or ``bn2 (call 3)``."""
        return f"{self.name}{self.selection}" + (f" (call {self.call})" if self.call else "")

    @property
    def selection(self) -> str:
        """Write ``select`` as Python would index the output."""
        if callable(self.select):
            return f" by {getattr(self.select, '__name__', 'a function')}"
        return "+".join(format_path(path) for path in self.paths)

    @property
    def paths(self) -> tuple[Path, ...]:
        """The paths of ``select``: one, or those that are concatenated; none for a function."""
        if callable(self.select):
            return ()
        several = bool(self.select) and all(isinstance(part, tuple) for part in self.select)
        return self.select if several else (self.select,)  # type: ignore[return-value]

    def parts(self, output: Any) -> list[Tensor]:
        """Return the tensors of a module's output that make the feature.

        Raises:
            LookupError: They are not there.
        """
        found = [self.select(output)] if callable(self.select) else [select(output, path) for path in self.paths]
        for part in found:
            if not isinstance(part, Tensor):
                raise LookupError(f"a {type(part).__name__} instead of a tensor")
        return found

    def read(self, output: Any) -> Tensor:
        """Return the feature of a module's output, as it is laid out there.

        Raises:
            LookupError: It is not there.
        """
        return self.join(self.parts(output))

    def join(self, parts: list[Tensor]) -> Tensor:
        """Return the feature that :meth:`parts` make, along their channels."""
        return parts[0] if len(parts) == 1 else torch.cat(parts, self._axis)

    def write(self, output: Any, feature: Tensor) -> Any:
        """Return a module's output with the feature replaced by one of the same shape; what is beside it stays."""
        parts = self.parts(output)
        widths = [part.shape[self._axis] for part in parts]
        pieces = torch.split(feature, widths, self._axis) if len(parts) > 1 else (feature,)
        replaced = {id(part): piece for part, piece in zip(parts, pieces, strict=True)}
        return rebuild(output, lambda _, tensor: replaced.get(id(tensor), tensor))

    def as_map(self, feature: Tensor, image_size: tuple[int, int]) -> Tensor:
        """View the feature as (B, C, H, W)."""
        if self.layout == "NHWC":
            return feature.permute(0, 3, 1, 2)
        if self.layout == "tokens":
            feature = feature[:, self.prefix :]
            rows, columns = self.grid or token_grid(feature.shape[1], image_size) or (feature.shape[1], 1)
            return feature.transpose(1, 2).reshape(feature.shape[0], -1, rows, columns)
        return feature

    def as_output(self, map: Tensor, feature: Tensor) -> Tensor:
        """Bring a map (B, C, H, W) back to the layout of the ``feature`` that it was read from."""
        if self.layout == "NHWC":
            return map.permute(0, 2, 3, 1)
        if self.layout == "tokens":
            tokens = map.flatten(2).transpose(1, 2)
            return torch.cat([feature[:, : self.prefix], tokens], 1) if self.prefix else tokens
        return map

    @property
    def _axis(self) -> int:
        """The dimension of the channels."""
        return 1 if self.layout == "NCHW" else -1

    @staticmethod
    def from_spec(values: dict[str, Any]) -> Stage:
        """Build a stage from JSON values, as ``dataclasses.asdict`` gives them."""
        return Stage(**{key: _tuples(value) for key, value in values.items()})


def _tuples(value: Any) -> Any:
    return tuple(_tuples(each) for each in value) if isinstance(value, (list, tuple)) else value
