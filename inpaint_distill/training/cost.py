"""What a training step costs with and without distillation, side by side."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

import torch

from inpaint_distill.losses.balance import EAGER_STEPS
from inpaint_distill.training.loop import Trainer
from inpaint_distill.training.settings import Run

if TYPE_CHECKING:
    from inpaint_distill.training.data import StudyData
    from inpaint_distill.training.settings import BoostSettings

__all__ = ["step_cost"]

_WARM = EAGER_STEPS  # steps that cost more than later ones


def step_cost(settings: BoostSettings, data: StudyData, lr: float, pairs: int = 32) -> dict[str, float]:
    """Time bare and distilled steps in turn, in both orders, on one thread.

    Args:
        settings: The study.
        data: Its pixels.
        lr: Learning rate of the steps.
        pairs: Timed pairs of steps.

    Returns:
        ``bare_step_seconds`` and ``distilled_step_seconds`` (medians), ``ratio`` (of the totals, so that the steps in
        which the balance is measured count) and ``pairs``.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        steps = max(settings.steps, _WARM + pairs)
        bare, distilled = (
            Trainer(Run(arm=arm, seed=0, steps=steps, lr=lr), settings, data) for arm in ("bare", "distilled")
        )
        times: dict[str, list[float]] = {"bare": [], "distilled": []}
        for index in range(_WARM + pairs):
            order = [bare, distilled] if index % 2 else [distilled, bare]
            for trainer in order:
                began = time.perf_counter()
                trainer.train_step()
                if settings.device == "cuda":
                    torch.cuda.synchronize()
                if index >= _WARM:
                    times[trainer.run.arm].append(time.perf_counter() - began)
    finally:
        torch.set_num_threads(threads)
    return {
        "bare_step_seconds": statistics.median(times["bare"]),
        "distilled_step_seconds": statistics.median(times["distilled"]),
        "ratio": sum(times["distilled"]) / sum(times["bare"]),
        "pairs": pairs,
    }
