"""What a training step costs in each arm, side by side."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from inpaint_distill.losses.balance import EAGER_STEPS
from inpaint_distill.training.ablation import BARE, WHOLE
from inpaint_distill.training.loop import Trainer
from inpaint_distill.training.settings import Run

if TYPE_CHECKING:
    from inpaint_distill.training.data import StudyData
    from inpaint_distill.training.settings import BoostSettings

__all__ = ["step_cost"]

_WARM = EAGER_STEPS  # distilled steps that cost more than later ones
_ROUNDS = 32
_PHASES: dict[str, dict[str, Any]] = {  # of a training: what its distillation is set to
    "active": {"decay": None},
    "faded": {"decay": (0, 1), "teacher_steps": 1},  # nothing looks at the teacher
}


def step_cost(settings: BoostSettings, data: StudyData, lr: float, rounds: int | None = None) -> dict[str, Any]:
    """Time a step of each arm in turn, forwards and backwards through the arms, on one thread.

    Args:
        settings: The study.
        data: Its pixels.
        lr: Learning rate of the steps.
        rounds: Timed steps of each arm; by default so many that the steps which cost more, because the balance is
            measured or the meta-networks look ahead, have their share.

    Returns:
        By arm ``step_seconds`` (median, while distillation counts), ``ratio`` to the bare host's step over the whole
        training, ``ratio_active`` while distillation counts and ``ratio_faded`` once it has faded to zero (of the
        totals, so that the dearer steps count), and ``rounds``. A frozen teacher is trained within a first step: the
        ``seconds_beforehand`` of such an arm are shared out over the training's steps and part of its ``ratio``.
    """
    configs = [settings.distillation_for(arm, settings.steps) for arm in settings.variants]
    distilled = [config for config in configs if config is not None]
    warm = _WARM * max((config.every for config in distilled), default=1)
    if rounds is None:
        period = math.lcm(*(math.lcm(each.every * each.balance_every, each.lookahead.every) for each in distilled))
        rounds = period * math.ceil(_ROUNDS / period)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        steps = max(settings.steps, warm + rounds)
        run = Run(arm=BARE, seed=0, steps=steps, lr=lr)
        trainers = {}
        for arm in (BARE, *settings.variants):
            config = settings.distillation_for(arm, steps)
            if config is None or settings.fade_for(arm) is None:
                trainers[arm, "active"] = Trainer(replace(run, arm=arm), settings, data)
                continue
            for phase, changed in _PHASES.items():  # of a study that has this arm's distillation
                own = replace(settings, distillation=replace(config, **changed), fade=None, variants=(WHOLE,))
                trainers[arm, phase] = Trainer(replace(run, arm=WHOLE), own, data)
        times: dict[tuple[str, str], list[float]] = {key: [] for key in trainers}
        longest = dict.fromkeys(trainers, 0.0)  # of the first steps: the one in which a teacher is trained
        for index in range(warm + rounds):
            for key in list(trainers) if index % 2 else reversed(trainers):
                began = time.perf_counter()
                trainers[key].train_step()
                if settings.device == "cuda":
                    torch.cuda.synchronize()
                seconds = time.perf_counter() - began
                if index < warm:
                    longest[key] = max(longest[key], seconds)
                else:
                    times[key].append(seconds)
    finally:
        torch.set_num_threads(threads)
    active, faded = (
        {arm: sum(each) / sum(times[BARE, "active"]) for (arm, phase), each in times.items() if phase == name}
        for name in _PHASES
    )
    ratio = dict(active)
    for arm, after in faded.items():
        until = (settings.fade_for(arm) or (0.0, 1.0))[1]
        ratio[arm] = active[arm] * until + after * (1 - until)
    typical = {arm: statistics.median(times[arm, "active"]) for arm in active}
    frozen = [arm for arm, each in zip(settings.variants, configs, strict=True) if each and each.teacher == "frozen"]
    beforehand = {arm: max(0.0, longest[arm, "active"] - typical[arm]) for arm in frozen}
    for arm, seconds in beforehand.items():
        ratio[arm] += seconds / (statistics.fmean(times[BARE, "active"]) * settings.steps)
    return {
        "step_seconds": typical,
        "ratio": ratio,
        "ratio_active": active,
        "ratio_faded": faded,
        "seconds_beforehand": beforehand,
        "rounds": rounds,
    }
