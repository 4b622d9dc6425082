"""Is a difference between two arms more than chance: Student's t on paired runs."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from inpaint_distill.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Interval", "Verdict", "paired_interval", "sentence", "student_quantile", "verdict"]

Verdict = Literal["gain", "loss", "not shown"]


@dataclass(frozen=True)
class Interval:
    """A mean difference with its confidence interval; the bounds are nan for fewer than two pairs."""

    mean: float
    low: float
    high: float
    pairs: int
    confidence: float = 0.95


def paired_interval(first: Sequence[float], second: Sequence[float], confidence: float = 0.95) -> Interval:
    """Return the mean of ``second - first`` over the pairs, with its Student-t interval.

    Args:
        first: One value per pair, say the hole PSNR of the bare host for each seed.
        second: The other value of each pair, in the same order.
        confidence: Coverage of the interval, in (0, 1).

    Raises:
        InputError: If the lengths differ or there is no pair.

    >>> interval = paired_interval([17.0, 17.2, 16.9], [17.3, 17.4, 17.3])
    >>> f"{interval.mean:.2f} [{interval.low:.2f}, {interval.high:.2f}]"
    '0.30 [0.05, 0.55]'
    """
    if len(first) != len(second) or not first:
        raise InputError("paired values", f"{len(first)} and {len(second)} of them", "give one value of each per pair")
    differences = [after - before for before, after in zip(first, second, strict=True)]
    pairs = len(differences)
    mean = math.fsum(differences) / pairs
    if pairs < 2:
        return Interval(mean, math.nan, math.nan, pairs, confidence)
    error = statistics.stdev(differences) / math.sqrt(pairs)
    reach = student_quantile((1 + confidence) / 2, pairs - 1) * error
    return Interval(mean, mean - reach, mean + reach, pairs, confidence)


def student_quantile(probability: float, freedom: int) -> float:
    """Return the quantile of Student's t distribution with ``freedom`` degrees of freedom.

    The distribution function is the finite sum that holds for whole degrees of freedom (Abramowitz and Stegun, 26.7.3
    and 26.7.4), inverted by bisection to the last bit.

    Raises:
        InputError: If ``probability`` is not in (0, 1) or ``freedom`` is below 1.

    >>> round(student_quantile(0.975, 2), 3)
    4.303
    """
    if not 0 < probability < 1 or freedom < 1:
        raise InputError(
            f"quantile {probability} of t with {freedom} degrees of freedom",
            "not defined",
            "stay in (0, 1) and above 0",
        )
    if probability < 0.5:
        return -student_quantile(1 - probability, freedom)
    central = 2 * probability - 1
    # Bisection over the angle atan(t / sqrt(freedom)), which is bounded where t is not.
    low, high = 0.0, math.pi / 2
    while low < (middle := (low + high) / 2) < high:
        if _central_probability(middle, freedom) < central:
            low = middle
        else:
            high = middle
    return math.sqrt(freedom) * math.tan(low)


def _central_probability(angle: float, freedom: int) -> float:
    """Return the probability of -t < T < t, where t = sqrt(freedom) * tan(angle)."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2 == 1
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for power in range(1 if odd else 0, freedom - 1, 2):
        total += term
        term *= cosine * cosine * (power + 1) / (power + 2)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def verdict(interval: Interval) -> Verdict:
    """Tell whether the whole interval lies above zero, below zero, or neither (more is better)."""
    if interval.low > 0:
        return "gain"
    return "loss" if interval.high < 0 else "not shown"


def sentence(interval: Interval, what: str, unit: str = "dB") -> str:
    """Say in one plain sentence what the interval shows.

    Args:
        interval: The difference, with minus without.
        what: The quantity and the condition (``"hole PSNR at equal steps"``).
        unit: Unit of the difference.

    >>> sentence(Interval(0.3, 0.05, 0.55, 3), "hole PSNR at equal steps")
    'Distillation raises hole PSNR at equal steps by 0.30 dB (95% interval 0.05 to 0.55, 3 paired runs).'
    """
    if interval.pairs < 2:
        return f"One pair of runs differs by {interval.mean:+.2f} {unit} in {what}; that shows nothing about chance."
    evidence = (
        f"{interval.confidence:.0%} interval {interval.low:.2f} to {interval.high:.2f}, {interval.pairs} paired runs"
    )
    outcome = verdict(interval)
    if outcome == "not shown":
        return (
            f"No effect of distillation on {what} is shown: mean difference {interval.mean:+.2f} {unit} ({evidence})."
        )
    verb = "raises" if outcome == "gain" else "lowers"
    return f"Distillation {verb} {what} by {abs(interval.mean):.2f} {unit} ({evidence})."
