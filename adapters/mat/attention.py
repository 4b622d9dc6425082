"""Attention within windows that leaves out tokens which are not known yet."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["TransformerBlock", "WindowAttention"]

_HIDDEN = -100.0  # a key that is not known yet
_APART = -1e4  # a key from the other end of the image: out of reach also where all others are hidden


class WindowAttention(nn.Module):
    """Attend within windows, to valid tokens only: multi-head contextual attention (Li et al., CVPR 2022, Eq. 4).

    Logits of invalid keys are lowered by 100, so that a window without any valid key weighs all alike. Queries and keys
    are compared by cosine similarity, times 10 (ours: there is no LayerNorm to keep their size).
    """

    def __init__(self, channels: int, heads: int, window_size: int) -> None:
        super().__init__()
        self.heads = heads
        self.window_size = window_size
        self.scale = 10.0
        self.qkv = nn.Linear(channels, 3 * channels)
        self.softmax = nn.Softmax(dim=-1)
        self.project = nn.Linear(channels, channels)

    def forward(self, windows: Tensor, bias: Tensor) -> Tensor:
        """Map (B x windows, n, C) to the same shape; ``bias`` broadcasts to the logits (B x windows, heads, n, n)."""
        query, key, value = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.qkv(windows).chunk(3, dim=2)
        )
        logits = self.scale * (F.normalize(query, dim=3) @ F.normalize(key, dim=3).transpose(2, 3))
        rows = self.softmax(logits + bias)
        output: Tensor = self.project((rows @ value).transpose(1, 2).flatten(2))
        return output


class TransformerBlock(nn.Module):
    """Attend within windows, fuse and transform, without LayerNorm and residual.

    Eq. 2 and 3::

        x' = FC([MCA(x), x]),   output = MLP(x')

    All tokens of a window become valid where one of them was.

    Args:
        channels: Channels of a token.
        heads: Heads of the attention.
        window_size: Side of a window, in tokens; the side of the grid where that is smaller.
        shift_size: Tokens by which the windows are moved, along sides with more than one of them.
    """

    def __init__(self, channels: int, heads: int, window_size: int, shift_size: int) -> None:
        super().__init__()
        self.window_size = window_size
        self.shift_size = shift_size
        self.attention = WindowAttention(channels, heads, window_size)
        self.fuse = nn.Linear(2 * channels, channels)
        self.mlp = nn.Sequential(
            nn.Linear(channels, 2 * channels), nn.LeakyReLU(0.2), nn.Linear(2 * channels, channels)
        )

    def forward(self, x: Tensor, grid: tuple[int, int], valid: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Map tokens (B, N, C) on a grid of (rows, columns) and their validity (B, N, 1) to the next."""
        side = min(self.window_size, *grid)
        shift = [self.shift_size if length > side else 0 for length in grid]
        regions = _cut(_regions(grid, shift).to(x), grid, side, [0, 0])
        bias = _APART * (regions != regions.transpose(1, 2)).to(x).unsqueeze(1)  # (windows, 1, n, n)
        bias = bias.repeat(x.shape[0], 1, 1, 1)
        if valid is not None:
            known = _cut(valid, grid, side, shift)
            bias = bias + _HIDDEN * (1 - known).transpose(1, 2).unsqueeze(1)
            valid = _paste(known.amax(1, keepdim=True).expand_as(known), grid, side, shift)
        attended = _paste(self.attention(_cut(x, grid, side, shift), bias), grid, side, shift)
        return self.mlp(F.leaky_relu(self.fuse(torch.cat([attended, x], dim=2)), 0.2)), valid


def _cut(x: Tensor, grid: tuple[int, int], side: int, shift: list[int]) -> Tensor:
    """Cut tokens (B, N, C), rolled up and left by ``shift``, into windows (B x windows, side x side, C)."""
    batch, _, channels = x.shape
    x = x.reshape(batch, *grid, channels).roll([-shift[0], -shift[1]], (1, 2))
    x = x.reshape(batch, grid[0] // side, side, grid[1] // side, side, channels)
    return x.transpose(2, 3).reshape(-1, side * side, channels)


def _paste(windows: Tensor, grid: tuple[int, int], side: int, shift: list[int]) -> Tensor:
    """Undo :func:`_cut`."""
    channels = windows.shape[2]
    x = windows.reshape(-1, grid[0] // side, grid[1] // side, side, side, channels)
    return x.transpose(2, 3).reshape(-1, *grid, channels).roll(shift, (1, 2)).flatten(1, 2)


def _regions(grid: tuple[int, int], shift: list[int]) -> Tensor:
    """Number the parts of a rolled grid that were apart before, (1, N, 1): they must not attend to each other."""
    rows, columns = ((torch.arange(length) >= length - moved).long() for length, moved in zip(grid, shift, strict=True))
    return (2 * rows[:, None] + columns).flatten()[None, :, None]
