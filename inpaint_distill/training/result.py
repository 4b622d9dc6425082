"""What a boost study found: ``result.json``, its comparisons, and how an older one is read."""

from __future__ import annotations

import platform
import shlex
import sys
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from inpaint_distill import __version__
from inpaint_distill.config import to_dict
from inpaint_distill.errors import StateError
from inpaint_distill.files import read_json
from inpaint_distill.training.ablation import ARM_LABELS, BARE, Contrast, contrasts
from inpaint_distill.training.explained import paints_grey
from inpaint_distill.training.masks import BIN_NAMES
from inpaint_distill.training.metrics import METRICS
from inpaint_distill.training.perceptual import NETWORK_METRICS
from inpaint_distill.training.statistics import Interval, paired_interval, verdict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from inpaint_distill.training.data import StudyData
    from inpaint_distill.training.settings import BoostSettings

__all__ = ["SCORES", "assemble", "compare", "interval_of", "made_contrasts", "main_split", "read_result", "upgrade"]

SCHEMA = 2
SCORES = {"test": "scores", "val": "val_scores"}  # where a run holds its scores on a split


def assemble(
    settings: BoostSettings,
    data: StudyData,
    host: Mapping[str, Any],
    tuning: list[dict[str, Any]],
    cost: dict[str, Any],
    runs: list[dict[str, Any]],
    fills: Mapping[str, float],
) -> dict[str, Any]:
    """Return the content of ``result.json``.

    Args:
        settings: The study.
        data: Its pixels.
        host: Facts about the host.
        tuning: The trials.
        cost: As from :func:`inpaint_distill.training.cost.step_cost`.
        runs: As from :meth:`inpaint_distill.training.loop.Trainer.train`.
        fills: Hole PSNR without a network, on the images that the study ends with: ``one_colour``, ``interpolation``.
    """
    wanted = contrasts(settings.variants, equal_time=settings.equal_time)
    rows = [row for split in SCORES for contrast in wanted for row in compare(runs, contrast, split)]
    return {
        "schema": SCHEMA,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "versions": _versions(),
        "machine": {
            "processor": platform.machine(),
            "device": torch.cuda.get_device_name() if settings.device == "cuda" else "cpu",
            "threads_per_run": 1,
        },
        "settings": to_dict(settings),
        "data": {
            "source": data.source,
            "train": len(data.train),
            "val": len(data.val.images),
            "test": len(data.test.images),
            "sha256": data.checksum(),
            "skipped": [list(each) for each in data.skipped],
        },
        "host": dict(host),
        "fills": dict(fills),
        "tuning": tuning,
        "cost": cost,
        # The channel weights, long lists of numbers, stay in the runs' own files.
        "runs": [{key: value for key, value in run.items() if key != "channel_weights"} for run in runs],
        "comparisons": rows,
        "verdict": _verdicts(rows),
        "warnings": _warnings(tuning, runs, rows, fills),
    }


def compare(runs: Sequence[Mapping[str, Any]], contrast: Contrast, split: str) -> list[dict[str, Any]]:
    """Compare two arms, metric by metric and bin by bin, paired by seed; no row where a split was not scored."""
    arms = {
        arm: {run["seed"]: run[SCORES[split]] for run in runs if run["arm"] == arm}
        for arm in (contrast.baseline, contrast.arm)
    }
    first_arm, second_arm = arms[contrast.baseline], arms[contrast.arm]
    shared = [(first_arm[seed], scores) for seed, scores in second_arm.items() if seed in first_arm]
    rows = []
    for metric in (*METRICS, *NETWORK_METRICS):
        for name in ("all", *BIN_NAMES):
            # A run that was made before the weights of a metric's network were there has none of it.
            pairs = [pair for pair in shared if all(name in scores.get(metric, {}) for scores in pair)]
            if not pairs:
                continue
            first, second = ([scores[metric][name] for scores in arm] for arm in zip(*pairs, strict=True))
            interval = paired_interval(first, second)
            rows.append(
                {
                    "split": split,
                    **contrast._asdict(),
                    "metric": metric,
                    "bin": name,
                    "baseline_mean": sum(first) / len(first),
                    "arm_mean": sum(second) / len(second),
                    "mean": interval.mean,
                    "low": interval.low,
                    "high": interval.high,
                    "pairs": interval.pairs,
                    "differences": [b - a for a, b in zip(first, second, strict=True)],
                }
            )
    return rows


def interval_of(row: Mapping[str, Any]) -> Interval:
    """Return the interval of a row of comparisons."""
    low, high = (float("nan") if row[bound] is None else row[bound] for bound in ("low", "high"))
    return Interval(row["mean"], low, high, row["pairs"])


def main_split(result: Mapping[str, Any]) -> str:
    """Return the split that a result is about: test, or val where test was not scored."""
    return "test" if any(row["split"] == "test" for row in result["comparisons"]) else "val"


def made_contrasts(result: Mapping[str, Any]) -> list[Contrast]:
    """Return what a result compares, in its order."""
    found = (Contrast(row["comparison"], row["baseline"], row["arm"]) for row in result["comparisons"])
    return list(dict.fromkeys(found))


def read_result(path: Path) -> dict[str, Any]:
    """Read a ``result.json`` of this version or of an earlier one.

    Raises:
        StateError: If it is damaged, or has a schema that this version does not know.
    """
    return upgrade(read_json(path, "the result of a study", "give a result.json written by inpaint-distill boost"))


def upgrade(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return a result in the present schema; one that has it already comes back as it is.

    Raises:
        StateError: If it has a schema that this version does not know.
    """
    if result.get("schema") == 1:  # one variant, scored on test alone
        cost = result["cost"]
        rows = [{"split": "test", **row} for row in result["comparisons"]]
        seconds = {arm: cost[f"{arm}_step_seconds"] for arm in (BARE, "distilled")}
        ratio = {BARE: 1.0, "distilled": cost["ratio"]}
        now = {"step_seconds": seconds, "ratio": ratio, "rounds": cost["pairs"]}
        return {**result, "schema": SCHEMA, "cost": now, "comparisons": rows, "verdict": _verdicts(rows)}
    if result.get("schema") != SCHEMA:
        raise StateError(
            "a report of a boost result",
            f"schema {result.get('schema')!r}, this version reads 1 and {SCHEMA}",
            "use the version of inpaint-distill that wrote the result",
        )
    return dict(result)


def _verdicts(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Say what the hole PSNR over all holes shows, for each split and contrast."""
    return [
        {**{key: row[key] for key in ("split", *Contrast._fields)}, "verdict": verdict(interval_of(row))}
        for row in rows
        if (row["metric"], row["bin"]) == ("hole_psnr", "all")
    ]


def _warnings(
    tuning: Sequence[Mapping[str, Any]],
    runs: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    fills: Mapping[str, float],
) -> list[str]:
    found = [f"{run['arm']}, seed {run['seed']}: did not learn (stuck)" for run in runs if run["stuck"]]
    headline = (main_split({"comparisons": rows}), BARE, "hole_psnr", "all")
    about = ("split", "baseline", "metric", "bin")
    bare = next((row["baseline_mean"] for row in rows if tuple(row[key] for key in about) == headline), None)
    if bare is not None and bare < fills["interpolation"]:
        found.append(
            f"the host alone ends below interpolation without a network ({bare:.2f} against "
            f"{fills['interpolation']:.2f} dB hole PSNR): it has much to learn yet"
        )
    # Earlier versions did not measure it.
    if grey := paints_grey(run["curve"][-1].get("known_chroma") for run in runs if run["arm"] == BARE):
        found.append(f"the host alone {grey}")
    lrs = [trial["lr"] for trial in tuning]
    if len(lrs) > 1 and next(trial["lr"] for trial in tuning if trial["chosen"]) in (min(lrs), max(lrs)):
        found.append("the best learning rate is at the end of the list tried; the bare host may do better than shown")
    reasons = (reason for run in runs for reason in run.get("not_measured", {}).items())
    found += [f"{metric.upper()} was not measured: {reason}" for metric, reason in dict.fromkeys(reasons)]
    for arm in dict.fromkeys(row["arm"] for row in rows if row["baseline"] == BARE):
        own = (row["differences"] for row in rows if (row["baseline"], row["arm"]) == (BARE, arm))
        if not any(difference for differences in own for difference in differences):
            found.append(
                f"{ARM_LABELS[arm]}: the very scores of the host alone; what it adds does not apply to this host"
            )
    return found


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "platform": platform.system()}
    found |= {name: version(name) for name in ("torch", "timm", "numpy", "torchmetrics")}
    return {"inpaint_distill": __version__, **found}
