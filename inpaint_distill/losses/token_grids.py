"""Tokens as cells of a grid over the image: which touch the hole, and how two grids correspond (ours)."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Grid", "hole_tokens", "query_neighbours", "resample_keys"]

Grid: TypeAlias = tuple[int, int]


def hole_tokens(mask: Tensor, grid: Grid) -> Tensor:
    """Find the tokens that touch the hole: the mask's maximum over each token's cell (ours).

    Args:
        mask: (B, 1, H, W), 1 in the hole.
        grid: Rows and columns of tokens that tile the image; they need not divide H and W, and may exceed them.

    Returns:
        (B, rows, columns), the mask's values.

    >>> hole_tokens(torch.eye(4)[None, None], (2, 2))
    tensor([[[1., 0.],
             [0., 1.]]])
    """
    return F.adaptive_max_pool2d(mask.float(), grid)[:, 0]


def query_neighbours(student_grid: Grid, teacher_grid: Grid) -> tuple[Tensor, Tensor]:
    """Find the four teacher queries around each of the student's, bilinearly, both grids tiling the same image (ours).

    Returns:
        Indices (Nq, 4) of the teacher's queries, and their shares (Nq, 4), which sum to 1.

    >>> query_neighbours((1, 1), (2, 2))[1]
    tensor([[0.2500, 0.2500, 0.2500, 0.2500]], dtype=torch.float64)
    """
    axes = []
    for own, other in zip(student_grid, teacher_grid, strict=True):
        centre = ((torch.arange(own, dtype=torch.float64) + 0.5) * other / own - 0.5).clamp(0, other - 1)
        low = centre.floor()
        share = torch.stack([1 - (centre - low), centre - low], 1)
        axes.append((torch.stack([low, (low + 1).clamp_max(other - 1)], 1).long(), share))
    (y, y_share), (x, x_share) = axes
    index = y[:, None, :, None] * teacher_grid[1] + x[None, :, None, :]
    return index.reshape(-1, 4), (y_share[:, None, :, None] * x_share[None, :, None, :]).reshape(-1, 4)


def resample_keys(rows: Tensor, student_grid: Grid, teacher_grid: Grid) -> Tensor:
    """Spread each of the teacher's keys over the student's by the area they have in common; sums are kept (ours).

    Args:
        rows: (..., Nk*), shares of the teacher's keys.
        student_grid: Rows and columns of the student's keys.
        teacher_grid: Rows and columns of the teacher's.

    Returns:
        (..., Nk).

    >>> resample_keys(torch.tensor([0.2, 0.8]), (1, 4), (1, 2))
    tensor([0.1000, 0.1000, 0.4000, 0.4000])
    """
    vertical, horizontal = (
        _overlap(own, other).to(rows) for own, other in zip(student_grid, teacher_grid, strict=True)
    )
    on_grid = rows.reshape(*rows.shape[:-1], *teacher_grid)
    return (vertical.T @ (on_grid @ horizontal)).flatten(-2)


def _overlap(own: int, other: int) -> Tensor:
    """Return which share of each of ``other`` equal parts of a line lies in each of ``own`` equal parts."""
    edge, other_edge = (torch.linspace(0, 1, parts + 1, dtype=torch.float64) for parts in (own, other))
    high, low = (torch.minimum(other_edge[1:, None], edge[1:]), torch.maximum(other_edge[:-1, None], edge[:-1]))
    return (high - low).clamp_min(0) * other
