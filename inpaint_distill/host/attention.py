"""What is tapped of an attention layer: where it sits, and what one forward showed of it (ours)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch.nn.functional as F

from inpaint_distill.errors import PlanError
from inpaint_distill.host.stage import token_grid

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["AttentionKind", "AttentionMap", "AttentionSite", "grids"]

AttentionKind = Literal["mha", "sdpa", "softmax"]


@dataclass(frozen=True, kw_only=True)
class AttentionSite:
    """One attention layer of a host.

    Attributes:
        name: Module within whose forward the attention is computed, as in ``named_modules()``.
        call: Which call of the module within one forward of the host, from 0.
        index: Which attention within one call of the module, from 0; those of its children count.
        kind: ``nn.MultiheadAttention``, ``F.scaled_dot_product_attention``, or a plain softmax.
        heads: Number of heads.
        queries: Tokens of one map (of one window where it is windowed), as seen in the dry run, without the prefix.
        keys: The same for the keys, with the prefix.
        windows: Rows and columns of windows that tile the image, in row-major order; (1, 1) for global attention.
        window: Rows and columns of tokens in one window; (0, 0) for global attention.
        shift: Rows and columns by which the map is rolled up and left before it is cut into windows.
        prefix: Tokens before those of the image, such as a class token. Their rows are left out.
        channels: Channels of the feature that enters the attention; 0 where it cannot be read as tokens.
    """

    name: str
    call: int = 0
    index: int = 0
    kind: AttentionKind
    heads: int = 1
    queries: int = 0
    keys: int = 0
    windows: tuple[int, int] = (1, 1)
    window: tuple[int, int] = (0, 0)
    shift: tuple[int, int] = (0, 0)
    prefix: int = 0
    channels: int = 0

    @property
    def label(self) -> str:
        """Name the site as error texts and tables do."""
        call = f" (call {self.call})" if self.call else ""
        return f"{self.name}{call}" + (f" (attention {self.index})" if self.index else "")

    def grid(self, count: int, batch: int, images: int, image_size: tuple[int, int]) -> tuple[int, int]:
        """Return the (rows, columns) of the map whose tokens the queries are.

        >>> AttentionSite(name="attn", kind="sdpa").grid(96, 2, 2, (64, 96))
        (8, 12)
        >>> AttentionSite(name="attn", kind="softmax", window=(4, 4)).grid(16, 12, 2, (64, 96))
        (8, 12)

        Args:
            count: Queries of one map or window.
            batch: Leading dimension of what the taps kept: images, or images x windows.
            images: Number of images.
            image_size: Height and width of the images, in pixels.

        Raises:
            PlanError: The queries do not tile the image.
        """
        number = batch // images
        if number == 1:
            found = token_grid(count, image_size)
        else:
            height, width = self._window(count)
            # One level fits at most: halving a grid of several windows always leaves fewer of them.
            found = next(
                (
                    (rows, columns)
                    for rows, columns in grids(image_size)
                    if math.ceil(rows / height) * math.ceil(columns / width) == number
                ),
                None,
            )
        if found is None or batch % images:
            raise PlanError(
                f"the tokens of attention {self.label} as places of an image of {image_size[0]} x {image_size[1]}",
                f"{batch} maps of {count} queries for {images} images",
                "leave this layer out: attach(..., attention=['module.name', ...])",
            )
        return found

    def tokens(self, map: Tensor, count: int, batch: int, image_size: tuple[int, int]) -> Tensor:
        """Arrange a map in the order of the queries.

        Where windows reach over the edge of the map, the tokens beyond it are 0.

        >>> import torch
        >>> site = AttentionSite(name="attn", kind="softmax", window=(2, 2))
        >>> site.tokens(torch.arange(16.0).view(1, 1, 4, 4), 4, 4, (8, 8)).squeeze(-1)[1]
        tensor([2., 3., 6., 7.])

        Args:
            map: (B, C, rows, columns), on the grid of :meth:`grid`.
            count: Queries of one map or window.
            batch: Leading dimension of what the taps kept: images, or images x windows.
            image_size: Height and width of the images, in pixels.

        Returns:
            (B x windows, count, C).

        Raises:
            PlanError: The queries do not tile the image, or the map is on another grid.
        """
        images, channels, rows, columns = map.shape
        grid = self.grid(count, batch, images, image_size)
        if grid != (rows, columns):
            found, fix = f"a map of {rows} x {columns}", "resample the map to `grid(...)` first"
            raise PlanError(f"a map of {grid[0]} x {grid[1]} for attention {self.label}", found, fix)
        if batch == images:
            return map.flatten(2).transpose(1, 2)
        height, width = self._window(count)
        down, across = math.ceil(rows / height), math.ceil(columns / width)
        map = map.roll((-self.shift[0], -self.shift[1]), (2, 3))
        map = F.pad(map, (0, across * width - columns, 0, down * height - rows))
        cut = map.reshape(images, channels, down, height, across, width)
        return cut.permute(0, 2, 4, 3, 5, 1).reshape(batch, count, channels)

    def entering_tokens(self, entering: Tensor, count: int, batch: int, image_size: tuple[int, int]) -> Tensor | None:
        """Arrange the feature that enters the attention in the order of the queries, a map by its area average.

        Args:
            entering: (B, C, H, W), (B, H, W, C) or (B, N, C), as the module took it.
            count: Queries of one map or window.
            batch: Leading dimension of what the taps kept: images, or images x windows.
            image_size: Height and width of the images, in pixels.

        Returns:
            (B x windows, count, channels); ``None`` where the feature cannot be read so.
        """
        if not self.channels:
            return None
        if entering.ndim == 3:
            found = entering[:, self.prefix :]
            return found if found.shape == (batch, count, self.channels) else None
        map = entering if entering.shape[1] == self.channels else entering.permute(0, 3, 1, 2)
        map = F.adaptive_avg_pool2d(map, self.grid(count, batch, map.shape[0], image_size))
        return self.tokens(map, count, batch, image_size)

    def _window(self, count: int) -> tuple[int, int]:
        """Return the (rows, columns) of a window: the one planned where it has that many tokens, else a square."""
        if self.window[0] * self.window[1] == count:
            return self.window
        side = math.isqrt(count)
        if side * side != count:
            raise PlanError(
                f"windows of attention {self.label}",
                f"{count} tokens: neither {self.window[0]} x {self.window[1]} nor a square",
                "give their size: AttentionSite(..., window=(rows, columns))",
            )
        return side, side


def grids(image_size: tuple[int, int]) -> list[tuple[int, int]]:
    """List the (rows, columns) of every pyramid level of an image."""
    height, width = image_size
    return [(math.ceil(height / 2**level), math.ceil(width / 2**level)) for level in range(height.bit_length())]


@dataclass
class AttentionMap:
    """What one forward showed of one attention layer: queries and keys, or rows.

    B counts windows where the attention is windowed: B = images x windows, images outermost.

    Attributes:
        query: (B, heads, Nq, d), or ``None`` where only rows were seen.
        key: (B, heads, Nk, d).
        scale: Factor on ``query @ key^T``.
        bias: Added to the scaled product, broadcastable to (B, heads, Nq, Nk); ``None`` for none. A boolean mask of the
            host's is given as 0 and -inf.
        rows: (B, heads, Nq, Nk), the softmax's own output, each row summing to 1; ``None`` where queries were seen.
        logits: The softmax's input in the same layout, where the taps were asked to keep it (teachers).
        entering: The feature entering the attention, ``d``: the module's first tensor argument, (B, C, H, W),
            (B, H, W, C) or (B, N, C), as it came, but batch first where it is that of an ``nn.MultiheadAttention``.
    """

    query: Tensor | None = None
    key: Tensor | None = None
    scale: float = 1.0
    bias: Tensor | None = None
    rows: Tensor | None = None
    logits: Tensor | None = None
    entering: Tensor | None = None
