"""How strongly the terms count at a step."""

from __future__ import annotations

import math

__all__ = ["schedule"]


def schedule(step: int, warmup: int, decay: tuple[int, int] | None) -> float:
    """Return the factor in [0, 1] on every weight at a step, counted from 0 (ours).

    Args:
        step: Optimizer steps done so far.
        warmup: Steps of linear rise; the first step counts 1 / warmup.
        decay: Steps (first, last) of a cosine fall to zero; ``None`` for never.

    >>> [schedule(step, 2, (4, 8)) for step in (0, 1, 4, 6, 8)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
    if decay is None:
        return rise
    done = min(1.0, max(0.0, (step - decay[0]) / (decay[1] - decay[0])))
    return rise * (0.5 + 0.5 * math.cos(math.pi * done))
