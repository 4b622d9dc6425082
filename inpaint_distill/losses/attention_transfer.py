"""Attention transfer: the teacher's attention rows to the host's, for hole tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from inpaint_distill.errors import CaptureError
from inpaint_distill.host.stage import token_grid
from inpaint_distill.losses.attention_distance import attention_distance
from inpaint_distill.losses.term import Term
from inpaint_distill.losses.token_grids import hole_tokens
from inpaint_distill.networks.meta import TokenWeights

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from inpaint_distill.config import AttentionConfig
    from inpaint_distill.host.attention import AttentionMap, AttentionSite

__all__ = ["AttentionTransfer"]


class AttentionTransfer(Term):
    """``L_AT = 1/|H| * sum_{i in H} t_i * dist(r_i, r_i^AN)``, a sum over the attention layers (DGI).

    ``H`` are the tokens of which any part is hole. ``t`` is a meta-network on the feature that enters the teacher's
    attention; without it every ``t_i`` is one half, its start.

    Args:
        settings: Weight and distance.
        sites: The host's attention layers.
        channels: Channels of the feature that enters each, where ``t`` is there; 0 where it cannot be read as tokens.
        meta: Whether ``t`` is there.

    Shape:
        ``student`` and ``teacher``: an :class:`~inpaint_distill.host.attention.AttentionMap` for each site; ``mask``
        (B, 1, H, W); returns a scalar.
    """

    name = "attention"
    looks_at = "attention"

    def __init__(
        self,
        settings: AttentionConfig,
        sites: Sequence[AttentionSite],
        channels: Sequence[int] = (),
        *,
        meta: Collection[str] = (),
    ) -> None:
        super().__init__()
        self.settings = settings
        self.sites = tuple(sites)
        self.t = (
            nn.ModuleList(TokenWeights(each) if each else nn.Identity() for each in channels) if "t" in meta else None
        )

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
                    self._weights(number, site, other, hole, size),
                    distance=self.settings.distance,
                    student_grid=grid if batch == mask.shape[0] else None,
                    teacher_grid=token_grid(_counts(other)[1], size),
                )
            )
        return torch.stack(values).sum()

    def _weights(
        self, number: int, site: AttentionSite, teacher: AttentionMap, hole: Tensor, size: tuple[int, int]
    ) -> Tensor:
        """Return ``t`` (B, Nq)."""
        network = self.t[number] if self.t is not None else None
        if isinstance(network, TokenWeights) and teacher.entering is not None:
            tokens = site.entering_tokens(teacher.entering.detach().float(), hole.shape[1], hole.shape[0], size)
            if tokens is not None:
                weights: Tensor = network(tokens)
                return weights
        return torch.full_like(hole, 0.5)


def _counts(seen: AttentionMap) -> tuple[int, int]:
    """Return the leading dimension and the number of queries of a map."""
    tensor = seen.rows if seen.query is None else seen.query
    if tensor is None:
        raise CaptureError("an attention map", "neither queries nor rows", "report this: the taps kept nothing")
    return tensor.shape[0], tensor.shape[2]
