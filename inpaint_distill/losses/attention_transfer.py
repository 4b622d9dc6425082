"""Attention transfer: the teacher's attention rows to the host's, for hole tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from inpaint_distill.errors import CaptureError
from inpaint_distill.host.stage import token_grid
from inpaint_distill.losses.attention_distance import attention_distance
from inpaint_distill.losses.term import Term
from inpaint_distill.losses.token_grids import hole_tokens, query_neighbours
from inpaint_distill.networks.meta import TokenWeights

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from inpaint_distill.config import AttentionConfig
    from inpaint_distill.host.attention import AttentionMap, AttentionSite
    from inpaint_distill.losses.token_grids import Grid

__all__ = ["AttentionTransfer"]


class AttentionTransfer(Term):
    """``L_AT = 1/|H| * sum_{i in H} t_i * dist(r_i, r_i^AN)``, a sum over the attention layers (DGI).

    ``H`` are the tokens of which any part is hole. ``t`` is a meta-network on the feature that enters the teacher's
    attention; without it every ``t_i`` is one half, its start.

    Args:
        settings: Weight and distance.
        sites: The host's attention layers.
        teacher_sites: The teacher's, one for each.
        meta: Whether ``t`` is there.

    Shape:
        ``student`` and ``teacher``: an :class:`~inpaint_distill.host.attention.AttentionMap` for each site; ``mask``
        (B, 1, H, W); returns one value for each site.
    """

    name = "attention"
    looks_at = "attention"

    def __init__(
        self,
        settings: AttentionConfig,
        sites: Sequence[AttentionSite],
        teacher_sites: Sequence[AttentionSite],
        *,
        meta: Collection[str] = (),
    ) -> None:
        super().__init__()
        self.settings = settings
        self.sites = tuple(sites)
        self.teacher_sites = tuple(teacher_sites)
        channels = [site.channels for site in teacher_sites] if "t" in meta else []  # 0 where there are no tokens
        self.t = nn.ModuleList(TokenWeights(each) if each else nn.Identity() for each in channels)

    def forward(
        self,
        student: Sequence[AttentionMap],
        teacher: Sequence[AttentionMap],
        mask: Tensor,
        anchor: Sequence[Any] | None = None,
    ) -> Tensor:
        """Compute the term; see :class:`Term`."""
        size = (mask.shape[2], mask.shape[3])
        values = []
        for number, (site, own, other) in enumerate(zip(self.sites, student, teacher, strict=True)):
            batch, queries = _counts(own)
            grid = site.grid(queries, batch, mask.shape[0], size)
            hole = site.tokens(hole_tokens(mask, grid)[:, None].float(), queries, batch, size)[..., 0]
            values.append(
                attention_distance(
                    own,
                    other,
                    hole,
                    self._weights(number, other, hole, grid, size),
                    distance=self.settings.distance,
                    student_grid=grid if batch == mask.shape[0] else None,
                    teacher_grid=token_grid(_counts(other)[1], size),
                )
            )
        return torch.stack(values)

    def _weights(self, number: int, teacher: AttentionMap, hole: Tensor, grid: Grid, size: tuple[int, int]) -> Tensor:
        """Return ``t`` (B, Nq) for the host's queries."""
        network = self.t[number] if self.t else None
        if isinstance(network, TokenWeights) and teacher.entering is not None:
            entering, (batch, queries) = teacher.entering.detach().float(), _counts(teacher)
            tokens = self.teacher_sites[number].entering_tokens(entering, queries, batch, size)
            if tokens is not None:
                weights: Tensor = network(tokens)
                other_grid = token_grid(queries, size)
                if weights.shape == hole.shape:
                    return weights
                if other_grid is not None:
                    index, share = (each.to(weights.device) for each in query_neighbours(grid, other_grid))
                    return (weights[:, index] * share.to(weights.dtype)).sum(2)
        return torch.full_like(hole, 0.5)


def _counts(seen: AttentionMap) -> tuple[int, int]:
    """Return the leading dimension and the number of queries of a map."""
    tensor = seen.rows if seen.query is None else seen.query
    if tensor is None:
        raise CaptureError("an attention map", "neither queries nor rows", "report this: the taps kept nothing")
    return tensor.shape[0], tensor.shape[2]
