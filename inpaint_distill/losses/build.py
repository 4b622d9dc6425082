"""From the configuration to the terms."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inpaint_distill.errors import ConfigError
from inpaint_distill.losses.attention_transfer import AttentionTransfer
from inpaint_distill.losses.cross import CrossDistillation
from inpaint_distill.losses.self_distillation import SelfDistillation
from inpaint_distill.losses.terms import Terms

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inpaint_distill.config import Config
    from inpaint_distill.host.attention import AttentionSite
    from inpaint_distill.host.stage import Stage

__all__ = ["build_terms", "term_weights"]

_ALL = ("gamma", "rho", "phi", "t")
_NEEDS = {"gamma": CrossDistillation.name, "rho": CrossDistillation.name, "phi": SelfDistillation.name}


def term_weights(config: Config) -> dict[str, float]:
    """Return the weight of each term by name; terms of weight 0 do not exist."""
    weights = {
        CrossDistillation.name: config.cross.weight,
        SelfDistillation.name: config.self_.weight,
        AttentionTransfer.name: config.attention.weight,
    }
    return {name: weight for name, weight in weights.items() if weight}


def build_terms(
    config: Config,
    student: Sequence[Stage],
    teacher: Sequence[Stage],
    sites: Sequence[AttentionSite] = (),
    teacher_sites: Sequence[AttentionSite] = (),
) -> Terms:
    """Build the terms whose weight is not zero, with their networks; attention transfer where there is attention.

    Args:
        config: Weights, and which meta-networks there are.
        student: The host's stages.
        teacher: The teacher's stage for each of them.
        sites: The host's attention layers that are compared.
        teacher_sites: The teacher's, one for each.

    Raises:
        ConfigError: A term or a meta-network that was asked for cannot be built on these stages.
    """
    weights = term_weights(config)
    if not sites and weights.pop(AttentionTransfer.name, 0.0) and not weights:
        raise ConfigError(
            "attention transfer, the only term with a weight",
            "no attention of this host and its teacher to compare",
            "give another term a weight, name the attention (attach(attention=...)), or inject one "
            "(Config(fusion=True))",
        )
    meta = () if config.lookahead.engine == "off" else _ALL if config.meta is None else config.meta
    for network in config.meta or ():
        needed = _NEEDS.get(network, AttentionTransfer.name)
        if needed not in weights:
            fix = f"leave {network!r} out of `meta`"
            if needed == AttentionTransfer.name:
                fix += ", name the attention (attach(attention=...)), or inject one (Config(fusion=True))"
            raise ConfigError(f"the meta-network {network!r}", f"no {needed} term on this host", fix)
    terms = Terms()
    if CrossDistillation.name in weights:
        terms[CrossDistillation.name] = CrossDistillation(
            config.cross, student, teacher, predictor=config.predictor, meta=meta
        )
    if SelfDistillation.name in weights:
        terms[SelfDistillation.name] = SelfDistillation(config.self_, student, meta=meta)
    if AttentionTransfer.name in weights:
        terms[AttentionTransfer.name] = AttentionTransfer(config.attention, sites, teacher_sites, meta=meta)
    return terms.float()  # as what they compare, whatever the default type is
