"""Cross-distillation: the teacher's encoder to the host's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from inpaint_distill.losses.term import FeatureTerm
from inpaint_distill.networks.meta import ChannelWeights, FeatureTransform
from inpaint_distill.networks.projection import Projection

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from inpaint_distill.config import TermConfig
    from inpaint_distill.host.stage import Stage

__all__ = ["CrossDistillation"]


class CrossDistillation(FeatureTerm):
    """``L_CD = sum_l sum_c rho^l_c / |M_l| * || M_l * ( gamma_l(x*_l)_c - h_l(x_l)_c ) ||^2`` (DGI).

    The student-side predictor ``h_l`` (ours) is trained with the host; a teacher of other channels needs it, and its
    feature is brought to the student's resolution. ``gamma_l`` and ``rho^l`` are meta-networks on the teacher's
    feature; without them ``gamma_l`` is the identity and ``rho^l`` uniform.

    Args:
        settings: Weight, normalisation, region.
        student: The host's stages.
        teacher: The teacher's stage for each of them.
        predictor: Use ``h_l``.
        meta: Which of ``gamma`` and ``rho`` there are.

    Shape:
        ``student`` (B, C_l, H_l, W_l), ``teacher`` (B, C*_l, H*_l, W*_l), ``mask`` (B, 1, H, W); returns
        (levels,).
    """

    name = "cross"

    def __init__(
        self,
        settings: TermConfig,
        student: Sequence[Stage],
        teacher: Sequence[Stage],
        *,
        predictor: bool = True,
        meta: Collection[str] = (),
    ) -> None:
        super().__init__(settings)
        self.predictors = nn.ModuleList(
            Projection(own.channels, other.channels) if predictor or own.channels != other.channels else nn.Identity()
            for own, other in zip(student, teacher, strict=True)
        )
        channels = [stage.channels for stage in teacher]
        self.gamma = nn.ModuleList(FeatureTransform(each) for each in channels) if "gamma" in meta else None
        self.rho = nn.ModuleList(ChannelWeights(each, each) for each in channels) if "rho" in meta else None

    def forward(
        self,
        student: Sequence[Tensor],
        teacher: Sequence[Tensor],
        mask: Tensor,
        anchor: Sequence[Any] | None = None,
    ) -> Tensor:
        """Compute the term; see :class:`Term`."""
        levels = []
        for level, (predictor, feature, target) in enumerate(zip(self.predictors, student, teacher, strict=True)):
            size = (feature.shape[2], feature.shape[3])
            predicted = predictor(feature, size) if isinstance(predictor, Projection) else feature
            target = target.detach()
            if target.shape[2:] != feature.shape[2:]:
                target = nn.functional.interpolate(target, size, mode="bilinear", antialias=True)
            weights = self.weigh(self.rho[level] if self.rho else None, target, f"rho/{level}")
            if self.gamma:
                target = self.gamma[level](target)
            levels.append(self.compare(predicted, target, mask, weights))
        return torch.stack(levels)
