"""Self-distillation: a deep level of the host's encoder to the shallower one before it."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from inpaint_distill.errors import ConfigError
from inpaint_distill.losses.term import FeatureTerm
from inpaint_distill.networks.meta import ChannelWeights
from inpaint_distill.networks.projection import Projection

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from inpaint_distill.config import TermConfig
    from inpaint_distill.host.stage import Stage

__all__ = ["SelfDistillation"]


class SelfDistillation(FeatureTerm):
    """``L_SD = sum_{l<L} sum_c phi^l_c / |M_{l+1}| * || M_{l+1} * ( f_l(x_l)_c - x_{l+1},c ) ||^2`` (DGI).

    ``f_l`` is a convolution that brings ``x_l`` to the shape of ``x_{l+1}``. The deep side is detached (ours).
    ``phi^l`` is a meta-network on it; without it the channels weigh alike.

    Args:
        settings: Weight, normalisation, region.
        student: The host's stages, shallow to deep.
        meta: Whether ``phi`` is there.

    Raises:
        ConfigError: Fewer than two stages.
    """

    name = "self"
    needs_teacher = False

    def __init__(self, settings: TermConfig, student: Sequence[Stage], *, meta: Collection[str] = ()) -> None:
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
        channels = [stage.channels for stage in student[1:]]
        self.phi = nn.ModuleList(ChannelWeights(each, each) for each in channels) if "phi" in meta else None

    def forward(
        self,
        student: Sequence[Tensor],
        teacher: Sequence[Tensor],
        mask: Tensor,
        anchor: Sequence[Any] | None = None,
    ) -> Tensor:
        """Compute the term; see :class:`Term`. The teacher is not looked at."""
        levels = []
        targets = (anchor or student)[1:]
        for level, (projection, shallow, deep) in enumerate(zip(self.projections, student, targets, strict=False)):
            deep = deep.detach()
            weights = self.weigh(self.phi[level] if self.phi else None, deep, f"phi/{level}")
            predicted = projection(shallow, (deep.shape[2], deep.shape[3]))
            levels.append(self.compare(predicted, deep, mask, weights))
        return torch.stack(levels)
