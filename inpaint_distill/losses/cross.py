"""Cross-distillation: the teacher's encoder to the host's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from inpaint_distill.losses.term import Term
from inpaint_distill.networks.projection import Projection

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inpaint_distill.config import TermConfig
    from inpaint_distill.host.stage import Stage

__all__ = ["CrossDistillation"]


class CrossDistillation(Term):
    """``L_CD = sum_l sum_c rho^l_c / |M_l| * || M_l * ( gamma_l(x*_l)_c - h_l(x_l)_c ) ||^2`` (DGI).

    Here ``gamma_l`` is the identity and ``rho`` uniform. The student-side predictor ``h_l`` (ours) is trained with the
    host; a teacher of other channels needs it, and its feature is brought to the student's resolution.

    Args:
        settings: Weight, normalisation, region.
        student: The host's stages.
        teacher: The teacher's stage for each of them.
        predictor: Use ``h_l``.

    Shape:
        ``student`` (B, C_l, H_l, W_l), ``teacher`` (B, C*_l, H*_l, W*_l), ``mask`` (B, 1, H, W); returns a scalar.
    """

    name = "cross"

    def __init__(
        self, settings: TermConfig, student: Sequence[Stage], teacher: Sequence[Stage], *, predictor: bool = True
    ) -> None:
        super().__init__(settings)
        self.predictors = nn.ModuleList(
            Projection(own.channels, other.channels) if predictor or own.channels != other.channels else nn.Identity()
            for own, other in zip(student, teacher, strict=True)
        )

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor) -> Tensor:
        """Compute the term; see :class:`Term`."""
        levels = []
        for predictor, feature, target in zip(self.predictors, student, teacher, strict=True):
            size = (feature.shape[2], feature.shape[3])
            predicted = predictor(feature, size) if isinstance(predictor, Projection) else feature
            if target.shape[2:] != feature.shape[2:]:
                target = nn.functional.interpolate(target, size, mode="bilinear", antialias=True)
            levels.append(self.compare(predicted, target, mask))
        return torch.stack(levels).sum()
