"""What a training step costs in each arm, side by side."""

from __future__ import annotations

import math
import statistics
import time
from typing import TYPE_CHECKING, Any

import torch

from inpaint_distill.losses.balance import EAGER_STEPS
from inpaint_distill.training.ablation import BARE
from inpaint_distill.training.loop import Trainer
from inpaint_distill.training.settings import Run

if TYPE_CHECKING:
    from inpaint_distill.training.data import StudyData
    from inpaint_distill.training.settings import BoostSettings

__all__ = ["step_cost"]

_WARM = EAGER_STEPS  # steps that cost more than later ones
_ROUNDS = 32


def step_cost(settings: BoostSettings, data: StudyData, lr: float, rounds: int | None = None) -> dict[str, Any]:
    """Time a step of each arm in turn, forwards and backwards through the arms, on one thread.

    Args:
        settings: The study.
        data: Its pixels.
        lr: Learning rate of the steps.
        rounds: Timed steps of each arm; by default so many that the steps which cost more, because the balance is
            measured or the meta-networks look ahead, have their share.

    Returns:
        By arm ``step_seconds`` (median) and ``ratio`` to the bare host's step (of the totals, so that the dearer steps
        count), and ``rounds``.
    """
    if rounds is None:
        period = math.lcm(settings.distillation.balance_every, settings.distillation.lookahead.every)
        rounds = period * math.ceil(_ROUNDS / period)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        steps = max(settings.steps, _WARM + rounds)
        arms = (BARE, *settings.variants)
        trainers = [Trainer(Run(arm=arm, seed=0, steps=steps, lr=lr), settings, data) for arm in arms]
        times: dict[str, list[float]] = {arm: [] for arm in arms}
        for index in range(_WARM + rounds):
            for trainer in trainers if index % 2 else reversed(trainers):
                began = time.perf_counter()
                trainer.train_step()
                if settings.device == "cuda":
                    torch.cuda.synchronize()
                if index >= _WARM:
                    times[trainer.run.arm].append(time.perf_counter() - began)
    finally:
        torch.set_num_threads(threads)
    return {
        "step_seconds": {arm: statistics.median(each) for arm, each in times.items()},
        "ratio": {arm: sum(each) / sum(times[BARE]) for arm, each in times.items()},
        "rounds": rounds,
    }
