"""From the configuration to the terms."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from inpaint_distill.losses.cross import CrossDistillation
from inpaint_distill.losses.self_distillation import SelfDistillation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inpaint_distill.config import Config
    from inpaint_distill.host.stage import Stage

__all__ = ["build_terms", "term_weights"]


def term_weights(config: Config) -> dict[str, float]:
    """Return the weight of each term by name; terms of weight 0 do not exist."""
    weights = {CrossDistillation.name: config.cross.weight, SelfDistillation.name: config.self_.weight}
    return {name: weight for name, weight in weights.items() if weight}


def build_terms(config: Config, student: Sequence[Stage], teacher: Sequence[Stage]) -> nn.ModuleDict:
    """Build the terms whose weight is not zero, with their networks.

    Raises:
        ConfigError: A term cannot be built on these stages.
    """
    terms = nn.ModuleDict()
    if config.cross.weight:
        terms[CrossDistillation.name] = CrossDistillation(config.cross, student, teacher, predictor=config.predictor)
    if config.self_.weight:
        terms[SelfDistillation.name] = SelfDistillation(config.self_, student)
    return terms
