"""The boost study: a host alone against the host with distillation, paired, tuned, with intervals."""

from __future__ import annotations

import json
import platform
import shlex
import sys
from dataclasses import replace
from datetime import datetime, timezone
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from inpaint_distill import __version__
from inpaint_distill.adapters import get
from inpaint_distill.config import from_dict, to_dict
from inpaint_distill.errors import StateError
from inpaint_distill.training.cost import step_cost
from inpaint_distill.training.data import load_data
from inpaint_distill.training.figures import curves, differences, panels
from inpaint_distill.training.loop import Trainer
from inpaint_distill.training.masks import BIN_NAMES
from inpaint_distill.training.metrics import METRICS, composite
from inpaint_distill.training.pool import PANELS, Pool
from inpaint_distill.training.report import SCHEMA, markdown_table, write_report
from inpaint_distill.training.settings import BoostSettings, Run
from inpaint_distill.training.statistics import Interval, paired_interval, verdict

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.console import Console

    from inpaint_distill.training.data import StudyData

__all__ = ["boost"]

_PREVIEW = 3  # images of the small panel
_EXTENSIONS = 2  # times the list of learning rates may be extended at either end


def boost(settings: BoostSettings, folder: Path, console: Console, *, resume: bool = False) -> dict[str, Any]:
    """Run a study and write ``result.json``, ``table.md``, ``report.html`` and the figures.

    Args:
        settings: The study.
        folder: Where everything is written; finished runs stay in its sub-folder ``runs``.
        console: Where progress is shown.
        resume: Go on with a study of the same settings in this folder.

    Returns:
        The content of ``result.json``.

    Raises:
        StateError: ``folder`` holds a study and ``resume`` is off, or one of other settings.
        DataError: Images or masks cannot be used.
    """
    get(settings.host)  # a name that does not exist is told before anything is loaded
    runs = _open(settings, folder, resume=resume)
    data = load_data(settings)
    console.print(f"{len(data.train)} training, {len(data.val.images)} validation, {len(data.test.images)} test images")
    for name, reason in data.skipped:
        console.print(f"skipped {name}: {reason}", style="yellow", markup=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress, Pool(settings, data, runs, progress) as pool:
        tuning = _tune(settings, pool)
        lr = next(trial["lr"] for trial in tuning if trial["chosen"])
        cost = _cost(settings, data, lr, runs)
        plan = _runs(settings, lr, cost["ratio"])
        results = pool.train(plan, "train")
        restored = {run.arm: pool.restored(run) for run in plan if run.seed == settings.seeds[0]}
    result = _result(settings, data, tuning, cost, results)
    images = {
        "input": data.test.images[:PANELS],
        "hole": data.test.holes[:PANELS],
        "truth": data.test.images[:PANELS],
        **{
            arm: composite(restored[arm], data.test.images[:PANELS], data.test.holes[:PANELS])
            for arm in ("bare", "distilled")
        },
    }
    (folder / "result.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (folder / "table.md").write_text(markdown_table(result, METRICS), encoding="utf-8")
    panels({name: shown[:_PREVIEW] for name, shown in images.items()}, folder / "preview.png")
    figures = {
        "differences": differences(result, folder / "differences.png"),
        "curves": curves(result, folder / "curves.png"),
        "panels": panels(images, folder / "panels.png"),
    }
    write_report(result, figures, folder)
    return result


def _open(settings: BoostSettings, folder: Path, *, resume: bool) -> Path:
    """Make the study's folder, or check that it holds this very study; return the folder of its runs."""
    file = folder / "settings.json"
    if file.exists():
        if not resume:
            fix = f"add --resume to go on with it, or give another folder: --out {folder}-2"
            raise StateError(f"a new study in {folder}", "a study that was begun", fix)
        before = from_dict(BoostSettings, json.loads(file.read_text(encoding="utf-8")))
        if replace(before, jobs=settings.jobs) != settings:
            old, new = to_dict(before), to_dict(settings)
            changed = [f"{key} = {old[key]} (now {new[key]})" for key in new if old[key] != new[key]]
            found = f"it was begun with {', '.join(changed)}"
            raise StateError(f"to resume the study in {folder}", found, "repeat its settings, or give another --out")
    runs = folder / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(to_dict(settings), indent=1) + "\n", encoding="utf-8")
    return runs


def _tune(settings: BoostSettings, pool: Pool) -> list[dict[str, Any]]:
    """Choose the bare host's learning rate on the validation images; extend the list where its end is best."""
    trials = settings.trials()
    results = pool.train(trials, "tune")
    for _ in range(_EXTENSIONS):
        lrs = [trial["lr"] for trial in results]
        best = _best(results)["lr"]
        if len(lrs) < 2 or min(lrs) < best < max(lrs):
            break
        further = replace(trials[0], lr=best * 2 if best == max(lrs) else best / 2)
        results += pool.train([further], "tune")
    best = _best(results)
    return [
        {
            "lr": trial["lr"],
            "val_hole_psnr": trial["curve"][-1]["hole_psnr"],
            "steps": trial["steps"],
            "stuck": trial["stuck"],
            "chosen": trial is best,
        }
        for trial in sorted(results, key=lambda trial: float(trial["lr"]))
    ]


def _best(trials: list[dict[str, Any]]) -> dict[str, Any]:
    return max(trials, key=lambda trial: (not trial["stuck"], trial["curve"][-1]["hole_psnr"]))


def _cost(settings: BoostSettings, data: StudyData, lr: float, folder: Path) -> dict[str, float]:
    """Measure the cost of a step once per study, before the runs, while no worker is busy."""
    file = folder / "cost.json"
    if not file.exists():
        file.write_text(json.dumps(step_cost(settings, data, lr)), encoding="utf-8")
    cost: dict[str, float] = json.loads(file.read_text(encoding="utf-8"))
    return cost


def _runs(settings: BoostSettings, lr: float, ratio: float) -> list[Run]:
    """List the study's runs, seed by seed, so that a study cut short has whole pairs."""
    active = settings.fade[1] if settings.fade else 1.0  # part of the training in which a step costs more
    longer = max(settings.steps, round(settings.steps * (1 + (ratio - 1) * active)))
    runs = []
    for seed in settings.seeds:
        runs.append(Run(arm="bare", seed=seed, steps=settings.steps, lr=lr))
        runs.append(Run(arm="distilled", seed=seed, steps=settings.steps, lr=lr))
        if settings.equal_time:
            runs.append(Run(arm="bare_equal_time", seed=seed, steps=longer, lr=lr))
    return runs


def _result(
    settings: BoostSettings,
    data: StudyData,
    tuning: list[dict[str, Any]],
    cost: dict[str, float],
    runs: list[dict[str, Any]],
) -> dict[str, Any]:
    trainer = Trainer(Run(arm="bare", seed=0, steps=1, lr=1e-3), settings, data)
    comparisons = [row for kind, base in _baselines(settings) for row in _compare(kind, base, runs)]
    warnings = [f"{run['arm']}, seed {run['seed']}: did not learn (stuck)" for run in runs if run["stuck"]]
    lrs = [trial["lr"] for trial in tuning]
    if len(lrs) > 1 and next(trial["lr"] for trial in tuning if trial["chosen"]) in (min(lrs), max(lrs)):
        warnings.append(
            "the best learning rate is at the end of the list tried; the bare host may do better than shown"
        )
    return {
        "schema": SCHEMA,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["inpaint-distill", *sys.argv[1:]]),
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
            "skipped": [list(each) for each in data.skipped],
        },
        "host": {
            "name": settings.host,
            "parameters": sum(parameter.numel() for parameter in trainer.host.parameters()),
            "stages": list(trainer.adapter.stages or ()),
        },
        "tuning": tuning,
        "cost": cost,
        "runs": runs,
        "comparisons": comparisons,
        "verdict": {
            row["comparison"]: verdict(Interval(row["mean"], row["low"], row["high"], row["pairs"]))
            for row in comparisons
            if row["metric"] == "hole_psnr" and row["bin"] == "all"
        },
        "warnings": warnings,
    }


def _baselines(settings: BoostSettings) -> list[tuple[str, str]]:
    return [("steps", "bare"), *([("time", "bare_equal_time")] if settings.equal_time else [])]


def _compare(kind: str, baseline: str, runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Compare the distilled arm with a baseline, metric by metric and bin by bin, paired by seed."""
    arms = {arm: {run["seed"]: run["scores"] for run in runs if run["arm"] == arm} for arm in (baseline, "distilled")}
    seeds = [seed for seed in arms["distilled"] if seed in arms[baseline]]
    rows = []
    for metric in METRICS:
        for name in ("all", *BIN_NAMES):
            first, second = (
                [arms[arm][seed][metric][name] for seed in seeds if name in arms[arm][seed][metric]]
                for arm in (baseline, "distilled")
            )
            if not first:
                continue
            interval = paired_interval(first, second)
            rows.append(
                {
                    "comparison": kind,
                    "baseline": baseline,
                    "arm": "distilled",
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


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "platform": platform.system()}
    found |= {name: version(name) for name in ("torch", "timm", "numpy", "torchmetrics")}
    return {"inpaint_distill": __version__, **found}
