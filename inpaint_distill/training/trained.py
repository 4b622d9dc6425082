"""The hosts of a finished study, built again with their trained weights, and what they show of an image."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from inpaint_distill.attach import attach
from inpaint_distill.config import Config, from_dict
from inpaint_distill.errors import ConfigError, StateError, near_names
from inpaint_distill.files import read_json
from inpaint_distill.host.guard import forked_rng
from inpaint_distill.host.taps import FeatureTaps
from inpaint_distill.teachers import FrozenTeacher
from inpaint_distill.teachers.base import CopyTeacher
from inpaint_distill.teachers.choose import make_teacher
from inpaint_distill.training.ablation import ALONE, BARE
from inpaint_distill.training.kept import DISTILLER, HOST, kept_file, read_kept
from inpaint_distill.training.settings import BoostSettings, Run

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from inpaint_distill.host.adapter import Adapter
    from inpaint_distill.host.stage import Stage
    from inpaint_distill.training.data import EvalSet

__all__ = ["TEACHER", "FinishedStudy", "Trained", "features", "load_trained", "open_study", "run_network", "same_draws"]

TEACHER = "teacher"

_BATCH = 32
_REPEAT = "repeat the study with this version: inpaint-distill boost --config {folder}/result.json --out ANOTHER"


@dataclass(frozen=True)
class FinishedStudy:
    """What a study left behind.

    Attributes:
        folder: Where it lies.
        settings: What it was.
        pairs: For each seed whose weights were kept, the run of the host alone and the run of the arm.
    """

    folder: Path
    settings: BoostSettings
    pairs: tuple[tuple[Run, Run], ...]

    def file(self, run: Run, ending: str) -> Path:
        """Return where a run's file lies."""
        return kept_file(self.folder / "runs", run, ending)


@dataclass(frozen=True)
class Trained:
    """The networks of one seed, in eval mode.

    Attributes:
        seed: Seed of their trainings.
        networks: ``teacher``, ``bare`` and the arm, in this order.
        stages: The stages at which the arm was distilled.
    """

    seed: int
    networks: Mapping[str, nn.Module]
    stages: tuple[Stage, ...]


def open_study(folder: Path, arm: str) -> FinishedStudy:
    """Read what a study was and which of its runs can be looked into.

    Args:
        folder: A folder written by ``inpaint-distill boost``.
        arm: The arm beside the host alone.

    Raises:
        StateError: It is no finished study, or one without weights.
        ConfigError: The study has no such arm.
    """
    for name, found in (("settings.json", "no study"), ("result.json", "a study that is not finished")):
        if not (folder / name).is_file():
            fix = "give a folder written by inpaint-distill boost; a study that was stopped goes on with --resume"
            raise StateError(f"the study in {folder}", f"{found}: no {name}", fix)
    again = _REPEAT.format(folder=folder)
    settings = from_dict(BoostSettings, read_json(folder / "settings.json", "the settings of a study", again))
    result = read_json(folder / "result.json", "the result of a study", again)
    try:
        kept = [{key: run[key] for key in ("arm", "seed", "steps", "lr")} for run in result["runs"]]
    except (LookupError, TypeError) as error:
        asked = f"the runs in {folder / 'result.json'}"
        raise StateError(asked, f"{type(error).__name__}: {error}", again) from None
    runs = {(run.arm, run.seed): run for run in (from_dict(Run, each, "a run") for each in kept)}
    arms = [name for name in dict.fromkeys(name for name, _ in runs) if name not in ALONE]
    if arm not in arms:
        raise ConfigError(f"arm {arm!r}", "the study has none of that name", f"use {near_names(arm, arms)}")
    pairs = [(runs[BARE, seed], run) for (name, seed), run in runs.items() if name == arm and (BARE, seed) in runs]
    study = FinishedStudy(folder, settings, tuple(pairs))
    whole = [
        (bare, run)
        for bare, run in pairs
        if all(study.file(*each).is_file() for each in ((bare, HOST), (run, HOST), (run, DISTILLER)))
    ]
    if not whole:
        wanted = ", ".join(study.file(*each).name for each in ((pairs[0][0], HOST), (pairs[0][1], HOST)))
        found = f"no {wanted} and .{DISTILLER} in {folder / 'runs'}: an earlier version made it"
        raise StateError(f"the trained weights of the study in {folder}", found, again)
    return replace(study, pairs=tuple(whole))


def load_trained(study: FinishedStudy, bare: Run, run: Run, data: EvalSet) -> Trained:
    """Build the hosts of a pair of runs with their weights, and the teacher that the distilled one had.

    Args:
        study: The study.
        bare: The run of the host alone.
        run: The run with distillation.
        data: Images of the study, to plan with.

    Raises:
        StateError: A file is damaged, or does not fit the hosts.
    """
    adapter = study.settings.adapter()
    alone = _load(_build(adapter, study.settings), study, bare)
    host = _build(adapter, study.settings)
    file = study.file(run, DISTILLER)
    saved, again = read_kept(file, DISTILLER)[1], _REPEAT.format(folder=study.folder)
    try:
        config = from_dict(Config, saved.get("config"))  # type: ignore[arg-type]  # it is checked there
    except ConfigError as error:
        raise StateError(f"the distiller in {file}", f"{error.asked}: {error.found}", again) from None
    frozen = config.teacher == "frozen"  # it wants images to train on; a saved one is not trained again
    teacher = FrozenTeacher(data.images[:1]) if frozen else make_teacher(None, config)
    optimizer = torch.optim.Adam(host.parameters(), lr=run.lr)
    image, mask = data.images[:2], data.holes[:2]
    # As in training: what is injected is planned at once, everything else by the host's first call.
    plan_with = (image, mask) if config.completion or config.fusion else (None, None)
    with forked_rng():
        distiller = attach(
            host,
            optimizer,
            image=plan_with[0],
            mask=plan_with[1],
            teacher=teacher,
            adapter=adapter,
            config=config,
        )
        if distiller.plan is None:
            adapter.outputs(host, image, mask)
    try:
        distiller.load(file)
    except StateError as error:
        raise StateError(f"the distiller in {file}", error.found, again) from None
    _load(host, study, run)  # only now: attach() may have put blocks into the host
    stages = distiller.plan.stages if distiller.plan else ()
    distiller.detach()
    if not isinstance(teacher, CopyTeacher):
        found = f"a teacher of another architecture, {teacher.describe()}"
        raise StateError(f"the teacher of {run.name}", found, "inspect a study whose teacher is a copy of the host")
    networks = {TEACHER: teacher.module, BARE: alone, run.arm: host}
    for module in networks.values():
        module.eval()
    return Trained(run.seed, networks, stages)


@torch.no_grad()
def features(
    module: nn.Module, stages: Sequence[Stage], adapter: Adapter, data: EvalSet, *, complete: bool = False
) -> list[Tensor]:
    """Return the features of a network, one (N, C, h, w) for each stage.

    Args:
        module: A host or its copy.
        stages: What to read.
        adapter: How to run it.
        data: Images and holes.
        complete: Show the complete image and an empty hole instead.
    """
    parts: list[list[Tensor]] = []
    taps = FeatureTaps(module, stages)
    try:
        for images, holes in zip(torch.split(data.images, _BATCH), torch.split(data.holes, _BATCH), strict=True):
            taps.begin()
            run_network(module, adapter, images, torch.zeros_like(holes) if complete else holes)
            size = (images.shape[2], images.shape[3])
            parts.append([stage.as_map(each, size) for stage, each in zip(stages, taps.take(), strict=True)])
    finally:
        taps.remove()
    return [torch.cat(level) for level in zip(*parts, strict=True)]


def run_network(module: nn.Module, adapter: Adapter, images: Tensor, holes: Tensor) -> Any:
    """Run a network with the same random numbers each time: some hosts draw noise in eval mode too."""
    with same_draws():
        return adapter.outputs(module, images, holes)


@contextmanager
def same_draws() -> Iterator[None]:
    """Draw the same random numbers each time; those of the caller go on afterwards as if none had been drawn."""
    with forked_rng():
        torch.default_generator.manual_seed(0)
        yield


def _build(adapter: Adapter, settings: BoostSettings) -> nn.Module:
    with forked_rng():
        host = adapter.build(**settings.host_options)
    if host is None:
        raise ConfigError(
            f"to build the host {settings.host!r}", "its code has to be cloned", "inspect it in your loop"
        )
    return host


def _load(host: nn.Module, study: FinishedStudy, run: Run) -> nn.Module:
    file = study.file(run, HOST)
    tensors, _ = read_kept(file, HOST)
    try:
        host.load_state_dict(tensors)
    except RuntimeError as error:
        raise StateError(
            f"the weights in {file}", f"{type(error).__name__}: {error}", _REPEAT.format(folder=study.folder)
        ) from None
    return host
