"""What every distillation term is: networks, settings, and one number from the features of student and teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from inpaint_distill.losses.functional import hole_weight, masked_distance, normalize

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inpaint_distill.config import TermConfig

__all__ = ["Term"]


class Term(nn.Module):
    """A distillation term.

    Its parameters belong to theta: they are trained, with the host, by the distillation loss itself.

    Attributes:
        name: Name in the log and in the configuration.
        needs_teacher: Whether the teacher's features are looked at.
        settings: Weight, normalisation and region.
    """

    name: ClassVar[str]
    needs_teacher: ClassVar[bool] = True

    def __init__(self, settings: TermConfig) -> None:
        super().__init__()
        self.settings = settings

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor) -> Tensor:
        """Compute the term, unweighted.

        Args:
            student: The host's features (B, C_l, H_l, W_l), shallow to deep, float32.
            teacher: The teacher's, one for each of the host's; empty where the term needs none.
            mask: (B, 1, H, W), 1 in the hole.

        Returns:
            Scalar, a sum over the levels.
        """
        raise NotImplementedError

    def compare(self, feature: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Compare a feature with a target of its shape under this term's normalisation and region."""
        target = target.detach()
        size = (target.shape[2], target.shape[3])
        weight = hole_weight(mask, size) if self.settings.region == "hole" else torch.ones_like(target[:, :1])
        kind = self.settings.normalize
        return masked_distance(normalize(feature, target, kind), normalize(target, target, kind), weight)
