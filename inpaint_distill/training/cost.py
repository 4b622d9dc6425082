"""What a training step costs with and without distillation, side by side."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

import torch

from inpaint_distill.training.loop import Trainer
from inpaint_distill.training.settings import Run

if TYPE_CHECKING:
    from inpaint_distill.training.data import StudyData
    from inpaint_distill.training.settings import BoostSettings

__all__ = ["step_cost"]

_WARM = 3


def step_cost(settings: BoostSettings, data: StudyData, lr: float, pairs: int = 24) -> dict[str, float]:
    """Time bare and distilled steps in turn, in both orders, on one thread.

    Args:
        settings: The study.
        data: Its pixels.
        lr: Learning rate of the steps.
        pairs: Timed pairs of steps; the medians are reported.

    Returns:
        ``bare_step_seconds``, ``distilled_step_seconds``, their ``ratio`` (the median over the pairs) and ``pairs``.
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
    ratios = [with_ / without for with_, without in zip(times["distilled"], times["bare"], strict=True)]
    return {
        "bare_step_seconds": statistics.median(times["bare"]),
        "distilled_step_seconds": statistics.median(times["distilled"]),
        "ratio": statistics.median(ratios),
        "pairs": pairs,
    }
