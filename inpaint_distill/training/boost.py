"""The boost study: a host alone against the host with distillation or parts of it, paired, tuned, with intervals."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from inpaint_distill.config import from_dict, to_dict
from inpaint_distill.errors import StateError
from inpaint_distill.files import read_json, write_json, write_text
from inpaint_distill.training.ablation import ALONE, BARE, LONGER_OF, contrasts
from inpaint_distill.training.cost import step_cost
from inpaint_distill.training.data import load_data
from inpaint_distill.training.figures import curves, differences, forest, panels
from inpaint_distill.training.inspect import inspect_study
from inpaint_distill.training.lock import locked
from inpaint_distill.training.loop import Trainer
from inpaint_distill.training.metrics import composite
from inpaint_distill.training.pool import PANELS, Pool
from inpaint_distill.training.report import write_report
from inpaint_distill.training.result import assemble
from inpaint_distill.training.scoring import evaluate, interpolated, mean_fill, restore, scored
from inpaint_distill.training.settings import BoostSettings, Run
from inpaint_distill.training.tables import METRIC_FORMATS, markdown_overview, markdown_table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from inpaint_distill.training.data import StudyData

__all__ = ["boost", "measure_cost", "planned"]

_PREVIEW = 3  # images of the small panel
_SHOWN = 3  # variants in the panels: the last ones
_DAMAGED = "begin the study again in another folder: --out"
_COST = "cost.json"
_INPUTS = "inputs.json"
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
        StateError: ``folder`` holds a study and ``resume`` is off, or one of other settings, images, masks or weights
            to start from; or another process trains it.
        DataError: Images or masks cannot be used.
    """
    settings.adapter()  # a name that does not exist is told before anything is loaded
    with locked(folder):
        return _boost(settings, folder, console, resume=resume)


def measure_cost(settings: BoostSettings, folder: Path) -> dict[str, Any]:
    """Measure what a step costs in each arm and keep it for :func:`boost`, which may then share the machine.

    Raises:
        StateError: ``folder`` holds a study of other settings, or another process trains it.
        DataError: Images or masks cannot be used.
    """
    with locked(folder):
        runs = _open(settings, folder, resume=True)
        data = None if (runs / _COST).exists() else load_data(settings)
        return _cost(settings, data, runs)


def _boost(settings: BoostSettings, folder: Path, console: Console, *, resume: bool) -> dict[str, Any]:
    runs = _open(settings, folder, resume=resume)
    data = load_data(settings)
    _same_inputs(settings, data, folder)
    console.print(f"{len(data.train)} training, {len(data.val.images)} validation, {len(data.test.images)} test images")
    if data.skipped:
        console.print(f"{len(data.skipped)} image file(s) skipped:", style="yellow")
    for name, reason in data.skipped:
        console.print(f"skipped {name}: {reason}", style="yellow", markup=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    cost = _cost(settings, data, runs)
    with Progress(*columns, console=console) as progress, Pool(settings, data, runs, progress) as pool:
        before = pool.train(settings.pretrainings(), "pretrain")[: len(settings.seeds)]
        tuning = _tune(settings, pool)
        lr = next(trial["lr"] for trial in tuning if trial["chosen"])
        plan = planned(settings, lr, cost["ratio"])
        results = pool.train(plan, "train")
        restored = {run.arm: pool.restored(run) for run in plan if run.seed == settings.seeds[0]}
    shown = scored(settings, data)
    fills = {"one_colour": mean_fill(shown), "interpolation": interpolated(shown)}
    result = assemble(settings, data, _host_facts(settings, data), tuning, cost, [*before, *results], fills)
    image, hole = shown.images[:PANELS], shown.holes[:PANELS]
    images = {"input": image, "hole": hole}
    images |= {arm: composite(restored[arm], image, hole) for arm in (BARE, *settings.variants[-_SHOWN:])}
    _write(result, {**images, "truth": image}, folder)
    return result


def _write(result: dict[str, Any], images: dict[str, Tensor], folder: Path) -> None:
    write_json(folder / "result.json", result)
    evidence = None
    if distilled := [arm for arm in result["settings"]["variants"] if arm not in ALONE]:
        evidence = inspect_study(folder, folder / "inspect", arm=distilled[-1], console=Console(quiet=True))
    tables = f"{markdown_overview(result)}\n{markdown_table(result, tuple(METRIC_FORMATS))}"
    write_text(folder / "table.md", tables)
    panels({name: shown[:_PREVIEW] for name, shown in images.items()}, folder / "preview.png")
    draw = differences if len(result["settings"]["variants"]) == 1 else forest
    figures = {
        draw.__name__: draw(result, folder / f"{draw.__name__}.png"),
        "curves": curves(result, folder / "curves.png"),
        "panels": panels(images, folder / "panels.png"),
        **{Path(name).stem: folder / "inspect" / name for name in (evidence["figures"] if evidence else ())},
    }
    write_report(result, figures, folder, evidence)


def _host_facts(settings: BoostSettings, data: StudyData) -> dict[str, Any]:
    trainer = Trainer(Run(arm=BARE, seed=0, steps=1, lr=1e-3), settings, data)
    facts = {
        "name": settings.host,
        "parameters": sum(parameter.numel() for parameter in trainer.host.parameters()),
        "stages": [getattr(stage, "label", stage) for stage in trainer.adapter.stages(trainer.host) or ()],
    }
    if settings.start is not None:
        shown = scored(settings, data)
        scores = evaluate(restore(trainer.host, trainer.adapter, shown), shown)
        facts["start"] = {"file": settings.start, "hole_psnr": scores["hole_psnr"]["all"]}
    return facts


def _open(settings: BoostSettings, folder: Path, *, resume: bool) -> Path:
    """Make the study's folder, or check that it holds this very study; return the folder of its runs."""
    file = folder / "settings.json"
    if file.exists():
        if not resume:
            fix = f"add --resume to go on with it, or give another folder: --out {folder}-2"
            raise StateError(f"a new study in {folder}", "a study that was begun", fix)
        before = from_dict(BoostSettings, read_json(file, "the settings of a study", _DAMAGED))
        if replace(before, jobs=settings.jobs) != settings:
            old, new = to_dict(before), to_dict(settings)
            changed = [f"{key} = {old[key]} (now {new[key]})" for key in new if old[key] != new[key]]
            found = f"it was begun with {', '.join(changed)}"
            raise StateError(f"to resume the study in {folder}", found, "repeat its settings, or give another --out")
    runs = folder / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    write_json(file, to_dict(settings))
    return runs


def _same_inputs(settings: BoostSettings, data: StudyData, folder: Path) -> None:
    """Check that the study was begun with the same pixels and weights as now: its arms are paired."""
    file = folder / _INPUTS
    found = {"images or masks": data.checksum()}
    if settings.start is not None:
        with suppress(OSError):  # that it cannot be read is told by what loads it
            found["weights to start from"] = hashlib.sha256(Path(settings.start).read_bytes()).hexdigest()
    before = read_json(file, "checksums of what a study reads", _DAMAGED) if file.exists() else {}
    if changed := [name for name, value in found.items() if before.get(name, value) != value]:
        what = f"other {' and other '.join(changed)} than before"
        fix = "give back those it was begun with, or another --out"
        raise StateError(f"to resume the study in {folder}", what, fix)
    write_json(file, found)


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


def _cost(settings: BoostSettings, data: StudyData | None, folder: Path) -> dict[str, Any]:
    """Measure the cost of a step once per study, first of all: no worker is busy, and an arm that fails fails now."""
    file = folder / _COST
    if data is not None and not file.exists():
        write_json(file, step_cost(settings, data, settings.lrs[0]))
    return read_json(file, "the cost of a step", "delete it and go on with --resume: it is measured again")


def planned(settings: BoostSettings, lr: float, ratio: Mapping[str, float]) -> list[Run]:
    """List the study's runs, seed by seed, so that a study cut short has whole pairs.

    Args:
        settings: The study.
        lr: Learning rate of every run.
        ratio: Cost of a step of each arm, in steps of the bare host, over the whole training.
    """
    arms = (BARE, *settings.variants)
    steps = dict.fromkeys(arms, settings.steps)
    for contrast in contrasts(settings.variants, equal_time=settings.equal_time):
        if contrast.comparison == "time":
            share = ratio[contrast.arm] / ratio[LONGER_OF[contrast.baseline]]
            steps[contrast.baseline] = max(settings.steps, round(settings.steps * share))
    return [Run(arm=arm, seed=seed, steps=own, lr=lr) for seed in settings.seeds for arm, own in steps.items()]
