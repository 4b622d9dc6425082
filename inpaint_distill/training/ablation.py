"""The arms of a study: which parts of the method each has, what it is called, and what it is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from inpaint_distill.config import Config, from_dict, to_dict
from inpaint_distill.errors import ConfigError, near_names

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "ALONE",
    "ARM_LABELS",
    "BARE",
    "BLOCK",
    "BLOCK_LONGER",
    "CHANGES",
    "FILLED",
    "FILLED_LONGER",
    "LONGER",
    "LONGER_OF",
    "PRETRAINED",
    "VARIANTS",
    "WHOLE",
    "WIDENED",
    "Change",
    "Contrast",
    "Variant",
    "contrasts",
    "variant_config",
]

BARE, LONGER, WHOLE, WIDENED = "bare", "bare_equal_time", "distilled", "widened"
BLOCK = "completion"  # the arm that has completion blocks and no distillation
FILLED = "filled"  # the arm that is given its holes interpolated instead of emptied, and has nothing else
FILLED_LONGER = "filled_equal_time"
PRETRAINED = "pretrained"  # the host as all arms of a study that fine-tunes find it
BLOCK_LONGER = "completion_equal_time"
# The arms that are trained for the last variant's wall-clock.
LONGER_OF = {LONGER: BARE, FILLED_LONGER: FILLED, BLOCK_LONGER: BLOCK}
ALONE = (PRETRAINED, BARE, WIDENED, FILLED, LONGER, FILLED_LONGER)  # the arms without distiller

_WEIGHTS = {"cross": 0.1, "self": 0.0125, "attention": 0.1}  # of a term that the study's own distillation leaves out


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
    BLOCK: Variant(label="+ completion blocks", completion=True),
    "uniform": Variant(label="+ three terms", terms=tuple(_WEIGHTS)),
    "finite_difference": Variant(label="+ meta, finite difference", terms=tuple(_WEIGHTS), engine="finite_difference"),
    "unroll": Variant(label="+ meta, unrolled", terms=tuple(_WEIGHTS), engine="unroll"),
    "all": Variant(label="+ everything", terms=tuple(_WEIGHTS), completion=True, engine="study"),
}


@dataclass(frozen=True, kw_only=True)
class Change:
    """The study's own distillation with one thing changed.

    Attributes:
        label: Its name in tables and figures.
        settings: What is changed, nested as in files; a term that the study leaves out stays out.
        fade: How much of the time that the study gives it distillation takes to fade to zero; ``None`` for never.
    """

    label: str
    settings: Mapping[str, Any]
    fade: float | None = 1.0


def _normalized(how: str) -> dict[str, Any]:
    return {"cross": {"normalize": how}, "self": {"normalize": how}}


def _blocks(*levels: int) -> dict[str, Any]:
    return {"completion": True, "completion_levels": levels, "completion_start": "identity"}


def _started(how: str) -> dict[str, Any]:
    return {"completion": True, "completion_levels": "input", "completion_start": how}


# About where the balance takes the factors of the default weights after 100 steps, 32 px, of partial-conv, gated-conv
# and unet. Measured with weights of 0.2 and 0.05, 0.0015 to 0.013 for cross and 0.0002 to 0.006 for self, and scaled
# down with them; of gated-conv, 0.05 for attention.
_FIXED = {"cross": {"weight": 0.005}, "self": {"weight": 0.0006}, "attention": {"weight": 0.05}}

CHANGES = {
    "teacher_frozen": Change(label="host + distillation, frozen teacher", settings={"teacher": "frozen"}),
    # The control of what a frozen teacher has learned: a copy of the host as it was initialised, but for one step.
    "teacher_untrained": Change(
        label="host + distillation, untrained teacher", settings={"teacher": "frozen", "teacher_steps": 1}
    ),
    "teacher_online": Change(label="host + distillation, online teacher", settings={"teacher": "online"}),
    "teacher_ema": Change(label="host + distillation, moving-average teacher", settings={"teacher": "ema"}),
    "channel_norm": Change(label="host + distillation, normalized by channel", settings=_normalized("channel")),
    "layer_norm": Change(label="host + distillation, normalized by pixel", settings=_normalized("layer")),
    "no_norm": Change(label="host + distillation, not normalized", settings=_normalized("none")),
    "fixed_weights": Change(label="host + distillation, fixed weights", settings={"balance": "none", **_FIXED}),
    "no_fade": Change(label="host + distillation, never faded", settings={"decay": None}, fade=None),
    "early_fade": Change(label="host + distillation, faded in half the time", settings={}, fade=0.5),
    "every_step": Change(label="host + distillation, at every step", settings={"every": 1}),
    "every_fourth": Change(label="host + distillation, at every fourth step", settings={"every": 4}),
    "adaptive_blocks": Change(
        label="host + distillation, adaptive blocks", settings={"completion": True, "completion_adaptive": True}
    ),
    "identity_start": Change(
        label="host + distillation, block that starts as the identity", settings=_started("identity")
    ),
    "interpolation_start": Change(
        label="host + distillation, block that starts at the interpolation", settings=_started("interpolation")
    ),
    "stage_block": Change(label="host + distillation, block after the first stage", settings=_blocks(0)),
    "deep_blocks": Change(label="host + distillation, blocks at levels 1 and 2", settings=_blocks(1, 2)),
    "more_blocks": Change(label="host + distillation, blocks at levels 0 to 2", settings=_blocks(0, 1, 2)),
}

ARM_LABELS = {
    PRETRAINED: "host, before",
    BARE: "host",
    WHOLE: "host + distillation",
    LONGER: "host, trained longer (equal wall-clock)",
    WIDENED: "host, widened",
    FILLED: "host, holes interpolated",
    FILLED_LONGER: "host, holes interpolated, trained longer (equal wall-clock)",
    BLOCK_LONGER: "host, completion blocks, trained longer (equal wall-clock)",
    **{name: variant.label for name, variant in VARIANTS.items()},
    **{name: change.label for name, change in CHANGES.items()},
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
    """Return what is compared: each arm with the host, and some with each other; the last also at equal wall-clock.

    At equal wall-clock with the host, and, where they are there, with the one whose holes are interpolated and, if it
    is the study's own distillation, with blocks alone.

    Where both are there, each look-ahead is compared with none, each changed distillation with the study's own, what
    has completion blocks with the host that has their parameters as width and with the one whose holes are
    interpolated, and distilled blocks with the same alone.

    >>> [f"{c.arm} - {c.baseline}" for c in contrasts(["uniform", "unroll"], equal_time=True)]
    ['uniform - bare', 'unroll - bare', 'unroll - uniform', 'unroll - bare_equal_time']
    """
    found = [Contrast("steps", BARE, name) for name in variants]
    if "uniform" in variants:
        found += [Contrast("steps", "uniform", name) for name in ("finite_difference", "unroll") if name in variants]
    if WHOLE in variants:
        found += [Contrast("steps", WHOLE, name) for name in variants if name in CHANGES]
    same = [name for name, change in CHANGES.items() if "completion" not in change.settings]
    completed = (BLOCK, "all", WHOLE)
    for baseline, arms in ((WIDENED, completed), (FILLED, completed), (BLOCK, ("all", WHOLE, *same))):
        if baseline in variants:
            found += [Contrast("steps", baseline, name) for name in arms if name in variants]
    if equal_time:
        last = variants[-1]
        shorter = {BARE, *variants[:-1]} - ({BLOCK} if last != WHOLE else set())
        found += [Contrast("time", longer, last) for longer, arm in LONGER_OF.items() if arm in shorter]
    return found


def variant_config(name: str, study: Config) -> Config:
    """Return the study's distillation with the parts of one variant and no others, or with one thing changed.

    Weights, teacher, distances and rates of a variant stay those of the study; a term that the study leaves out takes
    the method's own weight. Fusion blocks, which attention transfer watches, go with that term.

    Args:
        name: ``distilled`` for the study's distillation as it is, or one of ``VARIANTS`` or ``CHANGES``.
        study: The study's distillation.

    Raises:
        ConfigError: There is no such variant.

    >>> variant_config("self", Config()).cross.weight
    0.0
    >>> variant_config("no_norm", Config()).cross.normalize
    'none'
    """
    if name == WHOLE:
        return study
    if name in VARIANTS:
        return from_dict(Config, _parts(VARIANTS[name], study))
    if name in CHANGES:
        return from_dict(Config, _changed(CHANGES[name], study))
    known = [WHOLE, *VARIANTS, *CHANGES, WIDENED, FILLED]
    raise ConfigError(f"variant {name!r}", "no such variant", f"use {near_names(name, known, limit=len(known))}")


def _parts(variant: Variant, study: Config) -> dict[str, Any]:
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
        values |= {"completion_levels": "input", "completion_adaptive": False, "completion_start": "identity"}
    if "attention" not in variant.terms:
        values["fusion"] = False
    return values


def _changed(change: Change, study: Config) -> dict[str, Any]:
    values = to_dict(study)
    for key, value in change.settings.items():
        if key not in _WEIGHTS:
            values[key] = value
        elif values[key]["weight"] > 0:
            values[key] |= value
    return values
