"""What every distillation term is: networks, settings, and one number for each level of the student's views."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from inpaint_distill.losses.functional import channel_moments, hole_weight, masked_distance, normalize

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inpaint_distill.config import TermConfig

__all__ = ["FeatureTerm", "Term"]


class Term(nn.Module):
    """A distillation term.

    Its parameters belong to theta: they are trained, with the host, by the distillation loss itself. Those of its
    meta-networks are not; see :class:`~inpaint_distill.networks.meta.MetaNetwork`.

    Attributes:
        name: Name in the log and in the configuration.
        looks_at: Which part of :class:`~inpaint_distill.host.watch.Views` it compares.
        needs_teacher: Whether the teacher's views are looked at.
        channel_weights: Mean over the last batch of each of its ``rho`` or ``phi``, (C,), by level; empty where they
            are uniform.
    """

    name: ClassVar[str]
    looks_at: ClassVar[Literal["features", "attention"]] = "features"
    needs_teacher: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self.channel_weights: dict[str, Tensor] = {}

    def forward(
        self, student: Sequence[Any], teacher: Sequence[Any], mask: Tensor, anchor: Sequence[Any] | None = None
    ) -> Tensor:
        """Compute the term, unweighted.

        Args:
            student: What the host showed: features (B, C_l, H_l, W_l), shallow to deep, float32; or attention maps.
            teacher: The same of the teacher, one for each; empty where the term needs none.
            mask: (B, 1, H, W), 1 in the hole.
            anchor: What is detached of the student is taken from here (look-ahead); the student itself by default.

        Returns:
            (levels,): one value for each level, or site, of the student that a gradient enters; the term is their sum.
        """
        raise NotImplementedError


class FeatureTerm(Term):
    """A term that compares features.

    Args:
        settings: Weight, normalisation and region.
    """

    def __init__(self, settings: TermConfig) -> None:
        super().__init__()
        self.settings = settings

    def compare(self, feature: Tensor, target: Tensor, mask: Tensor, channel_weight: Tensor | None = None) -> Tensor:
        """Compare a feature with a target of its shape under this term's normalisation and region.

        No gradient enters ``target``, but for what a meta-network has done to it.
        """
        size = (target.shape[2], target.shape[3])
        weight = hole_weight(mask, size) if self.settings.region == "hole" else torch.ones_like(target[:, :1])
        kind = self.settings.normalize
        known = channel_moments(target) if kind == "channel" else None
        compared = [normalize(each, target, kind, known) for each in (feature, target)]
        return masked_distance(compared[0], compared[1], weight, channel_weight)

    def weigh(self, network: nn.Module | None, feature: Tensor, label: str) -> Tensor | None:
        """Return channel weights (B, C) for a feature, and remember their mean; ``None`` where they are uniform."""
        if network is None:
            return None
        weights: Tensor = network(feature)
        self.channel_weights[label] = weights.detach().mean(0)
        return weights
