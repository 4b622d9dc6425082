"""The arms of a study: which parts of the method each has, what it is called, and what it is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from inpaint_distill.config import Config, from_dict, to_dict
from inpaint_distill.errors import ConfigError, near_names

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ARM_LABELS", "BARE", "LONGER", "VARIANTS", "WHOLE", "Contrast", "Variant", "contrasts", "variant_config"]

BARE, LONGER, WHOLE = "bare", "bare_equal_time", "distilled"

_WEIGHTS = {"cross": 0.2, "self": 0.05, "attention": 0.1}  # of a term that the study's own distillation leaves out


@dataclass(frozen=True, kw_only=True)
class Variant:
    """Some parts of the method.

    Attributes:
        label: Its name in tables and figures.
        terms: The distillation terms that are on: ``cross``, ``self``, ``attention``.
        completion: Whether completion blocks are injected.
        engine: How the meta-networks are trained; ``study`` for the study's engine, or finite differences where that
            is off.
    """

    label: str
    terms: tuple[str, ...] = ()
    completion: bool = False
    engine: Literal["off", "finite_difference", "unroll", "study"] = "off"


VARIANTS = {
    "cross": Variant(label="+ cross-distillation", terms=("cross",)),
    "self": Variant(label="+ self-distillation", terms=("self",)),
    "attention": Variant(label="+ attention transfer", terms=("attention",)),
    "completion": Variant(label="+ completion blocks", completion=True),
    "uniform": Variant(label="+ three terms", terms=tuple(_WEIGHTS)),
    "finite_difference": Variant(label="+ meta, finite difference", terms=tuple(_WEIGHTS), engine="finite_difference"),
    "unroll": Variant(label="+ meta, unrolled", terms=tuple(_WEIGHTS), engine="unroll"),
    "all": Variant(label="+ everything", terms=tuple(_WEIGHTS), completion=True, engine="study"),
}

ARM_LABELS = {
    BARE: "host",
    WHOLE: "host + distillation",
    LONGER: "host, trained longer (equal wall-clock)",
    **{name: variant.label for name, variant in VARIANTS.items()},
}


class Contrast(NamedTuple):
    """One arm against another.

    Attributes:
        comparison: ``steps``: both train for equal steps; ``time``: the baseline trains for the arm's wall-clock.
        baseline: The arm that is subtracted.
        arm: The arm that it is subtracted from.
    """

    comparison: str
    baseline: str
    arm: str


def contrasts(variants: Sequence[str], *, equal_time: bool) -> list[Contrast]:
    """Return what is compared: each arm with the host, each look-ahead with none, the last arm at equal wall-clock.

    >>> [f"{c.arm} - {c.baseline}" for c in contrasts(["uniform", "unroll"], equal_time=True)]
    ['uniform - bare', 'unroll - bare', 'unroll - uniform', 'unroll - bare_equal_time']
    """
    found = [Contrast("steps", BARE, name) for name in variants]
    if "uniform" in variants:
        found += [Contrast("steps", "uniform", name) for name in ("finite_difference", "unroll") if name in variants]
    if equal_time:
        found.append(Contrast("time", LONGER, variants[-1]))
    return found


def variant_config(name: str, study: Config) -> Config:
    """Return the study's distillation with the parts of one variant and no others.

    Weights, teacher, distances and rates stay those of the study; a term that the study leaves out takes the method's
    own weight. Fusion blocks, which attention transfer watches, go with that term.

    Args:
        name: ``distilled`` for the study's distillation as it is, or one of ``VARIANTS``.
        study: The study's distillation.

    Raises:
        ConfigError: There is no such variant.

    >>> variant_config("self", Config()).cross.weight
    0.0
    """
    if name == WHOLE:
        return study
    if name not in VARIANTS:
        raise ConfigError(
            f"variant {name!r}", "no such variant", f"use {near_names(name, [WHOLE, *VARIANTS], limit=9)}"
        )
    variant = VARIANTS[name]
    values = to_dict(study)
    for term, weight in _WEIGHTS.items():
        values[term]["weight"] = (values[term]["weight"] or weight) if term in variant.terms else 0.0
    engine = variant.engine
    if engine == "study":
        engine = "finite_difference" if study.lookahead.engine == "off" else study.lookahead.engine
    values["lookahead"]["engine"] = engine
    if engine == "finite_difference":
        values["lookahead"]["steps"] = 1
    if engine == "off":
        values["meta"] = None
    values["completion"] = variant.completion
    if not variant.completion:
        values["completion_levels"] = None
    if "attention" not in variant.terms:
        values["fusion"] = False
    return from_dict(Config, values)
