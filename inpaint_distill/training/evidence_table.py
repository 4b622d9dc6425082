"""What was measured in the hosts of a study, summed up over images and seeds: numbers, a table, sentences."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inpaint_distill.training.ablation import ARM_LABELS, BARE
from inpaint_distill.training.statistics import paired_interval

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

__all__ = [
    "HOW_TO_READ",
    "MEASURES",
    "LevelValues",
    "arm_title",
    "markdown",
    "sentences",
    "summarise",
    "table_head",
    "table_rows",
]

MEASURES = {
    "energy_ratio": "energy, hole / outside",
    "hole_contrast": "hole contrast",
    "hole_agreement": "hole agreement with the teacher",
    "self_agreement": "self-agreement in the hole",
}

HOW_TO_READ = """\
Medians over the images, then means over the seeds. Energy: squared feature, mean over the channels. Hole contrast: how
far the ratio of the mean energies, hole / outside, is from 1, which is 0 where the hole does not show; that of the
teacher, which sees no hole, is what the content of the images makes alone. Hole agreement: cosine similarity with the
teacher's feature inside the hole, after a linear map fitted on known cells; the teacher is the distilled host's own,
which favours that host. Self-agreement: the same with the host's own feature of the complete image. Cells partly in the
hole count to neither side; agreement is left out where fewer cells are known than the feature has channels. Cases:
images times seeds. These numbers say what the features are like, not how good the images are.
"""


@dataclass(frozen=True)
class LevelValues:
    """What was measured at one level of the networks of one seed.

    Attributes:
        stage: Label of the stage.
        channels: Channels of the host's feature.
        size: Its height and width.
        stride: Image pixels per feature pixel.
        known_cells: Cells of all images without hole, on which maps are fitted.
        values: (N,) by measure and network; nan where an image has nothing to measure at this level.
    """

    stage: str
    channels: int
    size: tuple[int, int]
    stride: int
    known_cells: int
    values: Mapping[str, Mapping[str, Tensor]]


def summarise(seeds: Sequence[Sequence[LevelValues]], arm: str) -> list[dict[str, Any]]:
    """Take the median over the images and the mean over the seeds, and pair the arm with the host alone.

    The median, because a few images with next to nothing outside the hole have ratios of any size.

    Args:
        seeds: For each seed, shallow to deep, what was measured.
        arm: What is compared with the host alone.

    Returns:
        For each level its facts and, by measure, ``median`` and ``seeds`` by network, ``difference`` of arm minus host
        over the seeds (bounds are ``None`` for one seed), and in how many of the ``cases``, images times seeds, the
        arm is ``lower``.
    """
    levels = []
    for each in zip(*seeds, strict=True):
        first = each[0]
        facts = {"stage": first.stage, "channels": first.channels, "size": list(first.size), "stride": first.stride}
        measures = {
            name: _pair([level.values[name] for level in each], arm) for name in MEASURES if name in first.values
        }
        levels.append({**facts, "known_cells": first.known_cells, "measures": measures})
    return levels


def _pair(seeds: Sequence[Mapping[str, Tensor]], arm: str) -> dict[str, Any]:
    measurable = [each[BARE].isfinite() & each[arm].isfinite() for each in seeds]
    medians = {
        name: [_median(each[name][rows]) for each, rows in zip(seeds, measurable, strict=True)] for name in seeds[0]
    }
    # A seed may leave nothing to compare, such as a deep level of which few images have cells on either side.
    kept = [index for index, rows in enumerate(measurable) if rows.any()]
    difference: dict[str, Any] | None = None
    if kept:
        bare, own = ([medians[name][index] for index in kept] for name in (BARE, arm))
        interval = paired_interval(bare, own)
        difference = {name: _finite(getattr(interval, name)) for name in ("mean", "low", "high")}
        difference["pairs"] = interval.pairs
    return {
        "images": [int(rows.sum()) for rows in measurable],
        "median": {name: _finite(_mean([values[index] for index in kept])) for name, values in medians.items()},
        "seeds": {name: [_finite(value) for value in values] for name, values in medians.items()},
        "difference": difference,
        "lower": sum(int((each[arm] < each[BARE]).sum()) for each in seeds),
        "cases": sum(int(rows.sum()) for rows in measurable),
    }


def sentences(result: Mapping[str, Any]) -> list[str]:
    """Say in one sentence per level and measure which way it differs, and on what that rests.

    Args:
        result: What an inspection found, with ``levels`` and ``arm``.
    """
    label = arm_title(result["arm"]).removeprefix("host + ")
    found = []
    for level in result["levels"]:
        for measure in ("hole_contrast", "hole_agreement", "self_agreement"):
            row = level["measures"].get(measure)
            if row is None or row["difference"] is None:
                continue
            before, after = row["median"][BARE], row["median"][result["arm"]]
            word = "lower" if after < before else "higher" if after > before else "the same"
            low, high = row["difference"]["low"], row["difference"]["high"]
            pairs = row["difference"]["pairs"]
            basis = (
                "one pair of trainings: that shows nothing about chance"
                if low is None
                else f"95% interval of the difference {low:+.3f} to {high:+.3f}, {pairs} pairs of trainings"
            )
            found.append(
                f"With {label} the {MEASURES[measure]} is {word} at {level['stage']} ({before:.3f} -> {after:.3f}; "
                f"lower in {row['lower']} of {row['cases']} cases; {basis})."
            )
    return found


def markdown(result: Mapping[str, Any]) -> str:
    """Return the table, how to read it, and the sentences."""
    seeds = ", ".join(map(str, result["seeds"]))
    lines = [
        f"# Features of {result['settings']['host']}, {result['images']} validation images, seeds {seeds}\n",
        "| " + " | ".join(table_head(result)) + " |",
        "|---|---|--:|--:|--:|--:|--:|",
        *("| " + " | ".join(row) + " |" for row in table_rows(result)),
    ]
    text = "\n".join([*lines, "", HOW_TO_READ])
    return text + "".join(f"\n- {each}" for each in result["sentences"]) + "\n"


def table_head(result: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the heads of the table's columns."""
    return ("level", "measure", "host alone", arm_title(result["arm"]), "difference", "teacher", "images")


def table_rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the table's cells, a row for each level and measure."""
    arm = result["arm"]
    rows: list[tuple[str, ...]] = []
    for level in result["levels"]:
        title = f"{level['stage']} ({level['channels']} x {level['size'][0]} x {level['size'][1]})"
        for measure, row in level["measures"].items():
            median = row["median"]
            cells = (
                title,
                MEASURES[measure],
                _number(median[BARE]),
                _number(median[arm]),
                _difference(row["difference"]),
            )
            counts = "/".join(map(str, dict.fromkeys(row["images"])))
            rows.append((*cells, _number(median.get("teacher")), counts))
            title = ""
    return rows


def arm_title(arm: str) -> str:
    """Name an arm as a host.

    >>> arm_title("distilled"), arm_title("cross")
    ('host + distillation', 'host + cross-distillation')
    """
    label = ARM_LABELS.get(arm, arm)
    return label if label.startswith("host") else f"host {label}"


def _difference(difference: Mapping[str, Any] | None) -> str:
    if difference is None:
        return "n/a"
    text = f"{difference['mean']:+.3f}"
    if difference["low"] is not None:
        text += f" [{difference['low']:+.3f}, {difference['high']:+.3f}]"
    return text


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"


def _median(values: Tensor) -> float:
    return values.nanquantile(0.5).item() if len(values) else math.nan


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
