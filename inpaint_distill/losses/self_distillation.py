"""Self-distillation: a deep level of the host's encoder to the shallower one before it."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from inpaint_distill.errors import ConfigError
from inpaint_distill.losses.term import Term
from inpaint_distill.networks.projection import Projection

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inpaint_distill.config import TermConfig
    from inpaint_distill.host.stage import Stage

__all__ = ["SelfDistillation"]


class SelfDistillation(Term):
    """``L_SD = sum_{l<L} sum_c phi^l_c / |M_{l+1}| * || M_{l+1} * ( f_l(x_l)_c - x_{l+1},c ) ||^2`` (DGI).

    ``f_l`` is a convolution that brings ``x_l`` to the shape of ``x_{l+1}``; ``phi`` is uniform here. The deep side is
    detached (ours).

    Args:
        settings: Weight, normalisation, region.
        student: The host's stages, shallow to deep.

    Raises:
        ConfigError: Fewer than two stages.
    """

    name = "self"
    needs_teacher = False

    def __init__(self, settings: TermConfig, student: Sequence[Stage]) -> None:
        super().__init__(settings)
        if len(student) < 2:
            found = f"{len(student)} stage"
            raise ConfigError(
                "self-distillation between encoder levels", found, "tap two stages or set its weight to 0"
            )
        self.projections = nn.ModuleList(
            Projection(shallow.channels, deep.channels, max(1, round(deep.stride / shallow.stride)))
            for shallow, deep in itertools.pairwise(student)
        )

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor) -> Tensor:
        """Compute the term; see :class:`Term`. The teacher is not looked at."""
        levels = []
        for projection, shallow, deep in zip(self.projections, student, student[1:], strict=False):
            levels.append(self.compare(projection(shallow, (deep.shape[2], deep.shape[3])), deep, mask))
        return torch.stack(levels).sum()
