"""The figures of a boost study, as PNG files."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from inpaint_distill.training.ablation import (
    ARM_LABELS,
    BARE,
    BLOCK,
    BLOCK_LONGER,
    FILLED,
    FILLED_LONGER,
    LONGER,
    WHOLE,
    WIDENED,
)
from inpaint_distill.training.masks import BIN_NAMES
from inpaint_distill.training.metrics import score
from inpaint_distill.training.result import made_contrasts, main_split
from inpaint_distill.training.tables import COMPARISON_LABELS, SPLIT_LABELS, contrast_label

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy.typing as npt
    from matplotlib.axes import Axes
    from torch import Tensor

    from inpaint_distill.training.ablation import Contrast

__all__ = ["curves", "differences", "forest", "panels"]

# From the palette of Okabe and Ito, which stays apart under every colour blindness; the dashes tell the arms in print.
_ARM_STYLES = {
    BARE: ("#D55E00", "-"),
    WHOLE: ("#0072B2", "-"),
    "cross": ("#56B4E9", "-"),
    "self": ("#009E73", "-"),
    "attention": ("#CC79A7", "-"),
    BLOCK: ("#8A8A8A", "-"),
    "uniform": ("#222222", "-"),
    "finite_difference": ("#56B4E9", "--"),
    "unroll": ("#009E73", "--"),
    "all": ("#0072B2", "-"),
    "teacher_frozen": ("#56B4E9", ":"),
    "teacher_untrained": ("#222222", "-."),
    "teacher_online": ("#009E73", ":"),
    "teacher_ema": ("#CC79A7", ":"),
    "channel_norm": ("#CC79A7", "--"),
    "layer_norm": ("#CC79A7", "-."),
    "no_norm": ("#8A8A8A", "-."),
    "fixed_weights": ("#222222", ":"),
    "no_fade": ("#0072B2", ":"),
    "early_fade": ("#0072B2", "-."),
    "every_step": ("#009E73", "-."),
    "every_fourth": ("#56B4E9", "-."),
    "adaptive_blocks": ("#8A8A8A", ":"),
    "identity_start": ("#009E73", "--"),
    "interpolation_start": ("#D55E00", ":"),
    "stage_block": ("#E69F00", "-"),
    "deep_blocks": ("#E69F00", ":"),
    "more_blocks": ("#E69F00", "-."),
    WIDENED: ("#D55E00", "--"),
    FILLED: ("#56B4E9", "--"),
    LONGER: ("#E69F00", "--"),
    FILLED_LONGER: ("#56B4E9", ":"),
    BLOCK_LONGER: ("#8A8A8A", "--"),
}
_GAIN, _LOSS = _ARM_STYLES[WHOLE][0], _ARM_STYLES[BARE][0]
_INK, _QUIET, _HOLE = "#222222", "#8A8A8A", (0.85, 0.25, 0.60)
_SEED_MARK: dict[str, Any] = {
    "marker": "o",
    "markersize": 4,
    "markerfacecolor": "white",
    "markeredgecolor": _INK,
    "markeredgewidth": 0.9,
}
_DPI = 100
_LEGEND = 3  # entries in a row
_LINE = 36  # characters in a line of an entry, or of what stands beside a row


def panels(images: Mapping[str, Tensor], path: Path) -> Path:
    """Draw one row per image: input, what the arms restored, truth; the hole PSNR stands below what was restored.

    Pixels are enlarged by a whole factor without interpolation, to cells of about 192 pixels.

    Args:
        images: ``input``, ``truth`` and one per arm (K, 3, H, W) in [-1, 1], ``hole`` (K, 1, H, W).
        path: PNG file to write.
    """
    rows, _, height, width = images["truth"].shape
    factor = max(1, round(192 / max(height, width)))
    cell_height, cell_width = height * factor, width * factor
    names = ["input", *(name for name in images if name in ARM_LABELS), "truth"]
    heads = {name: _wrapped(ARM_LABELS.get(name, name), max(12, cell_width // 7)) for name in names}
    lines = max(head.count("\n") for head in heads.values())
    gap, header, footer = 8, 26 + 14 * lines, 22
    total_width = len(names) * (cell_width + gap) + gap
    total_height = header + rows * (cell_height + footer) + gap // 2

    figure = Figure(figsize=(total_width / _DPI, total_height / _DPI), dpi=_DPI, facecolor="white")
    for column, name in enumerate(names):
        left = gap + column * (cell_width + gap)
        _write(figure, left + cell_width / 2, total_height - header / 2, heads[name], size=9.5)
        shown = images[name].detach().cpu().float()
        hole = images["hole"].detach().cpu() > 0.5
        restored = name in ARM_LABELS
        values = score(shown, images["truth"].detach().cpu(), hole)["hole_psnr"].tolist() if restored else []
        if name == "input":
            shown = torch.where(hole, torch.tensor(_HOLE)[None, :, None, None] * 2 - 1, shown)
        for row in range(rows):
            bottom = total_height - header - row * (cell_height + footer) - cell_height
            figure.figimage(_enlarge(shown[row], factor), left, bottom, origin="upper")
            if restored:
                _write(
                    figure, left + cell_width / 2, bottom - footer / 2 + 1, f"hole PSNR {values[row]:.2f} dB", size=8
                )
    figure.savefig(path, dpi=_DPI)
    return path


def curves(result: Mapping[str, Any], path: Path) -> Path:
    """Draw the hole PSNR on the validation images against training steps and against training seconds.

    One thick line per arm for the mean of the seeds; of up to three arms, also one thin line per seed.

    Args:
        result: What a boost study returned, with ``runs``.
        path: PNG file to write.
    """
    arms = [arm for arm in _ARM_STYLES if any(run["arm"] == arm and run["curve"] for run in result["runs"])]
    labels = [_wrapped(ARM_LABELS[arm]) for arm in arms]
    lines = math.ceil(len(arms) / _LEGEND) * max(label.count("\n") + 1 for label in labels)
    size = (8.4, 3.3 + 0.2 * lines)
    figure = Figure(figsize=size, dpi=2 * _DPI, facecolor="white", layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    drawn: dict[str, Any] = {}
    for axis, key, label in zip(axes, ("step", "seconds"), ("training steps", "training seconds"), strict=True):
        for arm in arms:
            colour, dash = _ARM_STYLES[arm]
            points = [run["curve"] for run in result["runs"] if run["arm"] == arm and run["curve"]]
            for curve in points if len(arms) <= _LEGEND else ():
                axis.plot(*_xy(curve, key), color=colour, linestyle=dash, linewidth=0.8, alpha=0.45)
            (drawn[arm],) = axis.plot(*_xy(_mean_curve(points), key), color=colour, linestyle=dash, linewidth=2.2)
        _plain(axis, label)
    axes[0].set_ylabel("hole PSNR, validation (dB)", color=_INK, fontsize=9)
    figure.legend(
        [drawn[arm] for arm in arms],
        labels,
        loc="outside upper center",
        ncols=_LEGEND,
        frameon=False,
        fontsize=9,
    )
    figure.savefig(path)
    return path


def differences(result: Mapping[str, Any], path: Path, metric: str = "hole_psnr") -> Path:
    """Draw the paired differences per bin of hole ratios with their 95% intervals, one column per contrast.

    One dot per seed; the bar is the interval of the mean, the square the mean. Blue lies above zero, red below, grey on
    both sides.

    Args:
        result: What a boost study returned, with ``comparisons``.
        path: PNG file to write.
        metric: Which metric to draw.
    """
    split, made = main_split(result), made_contrasts(result)
    figure = Figure(figsize=(max(8.4, 4.2 * len(made)), 3.3), dpi=2 * _DPI, facecolor="white", layout="constrained")
    axes = figure.subplots(1, max(1, len(made)), sharey=True, squeeze=False)[0]
    names = ("all", *BIN_NAMES)
    for axis, contrast in zip(axes, made, strict=False):
        axis.axhline(0, color=_INK, linewidth=0.9, zorder=1)
        rows = {row["bin"]: row for row in _rows(result, split, metric) if _is(row, contrast)}
        for position, name in enumerate(names):
            if name in rows:
                _draw_difference(axis, position, rows[name])
        axis.set_xticks(range(len(names)), ["all holes", *(f"{name}%" for name in BIN_NAMES)])
        axis.set_xlim(-0.6, len(names) - 0.4)
        axis.axvline(0.5, color="#DDDDDD", linewidth=0.8, zorder=0)
        axis.set_title(COMPARISON_LABELS[contrast.comparison], color=_INK, fontsize=10)
        _plain(axis, "hole ratio")
    axes[0].set_ylabel(_metric_label(metric), color=_INK, fontsize=9)
    _difference_legend(figure)
    figure.savefig(path)
    return path


def forest(result: Mapping[str, Any], path: Path, metric: str = "hole_psnr") -> Path:
    """Draw the paired differences of every contrast over all holes, one row each, one column per split.

    The marks are those of :func:`differences`.

    Args:
        result: What a boost study returned, with ``comparisons``.
        path: PNG file to write.
        metric: Which metric to draw.
    """
    made = made_contrasts(result)
    splits = [split for split in SPLIT_LABELS if _rows(result, split, metric)]
    size = (8.4, 1.3 + 0.36 * len(made))
    figure = Figure(figsize=size, dpi=2 * _DPI, facecolor="white", layout="constrained")
    axes = figure.subplots(1, max(1, len(splits)), sharey=True, squeeze=False)[0]
    for axis, split in zip(axes, splits, strict=False):
        axis.axvline(0, color=_INK, linewidth=0.9, zorder=1)
        for position, contrast in enumerate(made):
            for row in _rows(result, split, metric):
                if row["bin"] == "all" and _is(row, contrast):
                    _draw_difference(axis, position, row, lying=True)
        axis.set_title(SPLIT_LABELS[split], color=_INK, fontsize=10)
        _plain(axis, _metric_label(metric), grid="x")
    labels = (contrast_label(contrast).replace(", equal steps", "") for contrast in made)
    axes[0].set_yticks(range(len(made)), [_wrapped(label) for label in labels])
    axes[0].set_ylim(len(made) - 0.4, -0.6)
    _difference_legend(figure)
    figure.savefig(path)
    return path


def _wrapped(label: str, width: int = _LINE) -> str:
    return textwrap.fill(label, width, break_on_hyphens=False)


def _rows(result: Mapping[str, Any], split: str, metric: str) -> list[Mapping[str, Any]]:
    return [row for row in result["comparisons"] if (row["split"], row["metric"]) == (split, metric)]


def _is(row: Mapping[str, Any], contrast: Contrast) -> bool:
    return (row["comparison"], row["baseline"], row["arm"]) == contrast


def _metric_label(metric: str) -> str:
    unit = " (dB)" if metric.endswith("psnr") else ""
    return f"difference in {metric.replace('_', ' ').replace('psnr', 'PSNR')}{unit}"


def _difference_legend(figure: Figure) -> None:
    handles = [
        Line2D([], [], color=_QUIET, linewidth=2.4, marker="s", markersize=6, label="mean and 95% interval"),
        Line2D([], [], linestyle="none", **_SEED_MARK, label="one seed"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=9)


def _draw_difference(axis: Axes, position: int, row: Mapping[str, Any], *, lying: bool = False) -> None:
    """Draw one difference at a position along the horizontal axis or, ``lying``, along the vertical one."""

    def plot(along: Any, values: Any, **style: Any) -> None:
        axis.plot(*((values, along) if lying else (along, values)), **style)

    low, high = row["low"], row["high"]
    colour = _QUIET
    if low is not None and high is not None and math.isfinite(low) and math.isfinite(high):
        colour = _GAIN if low > 0 else _LOSS if high < 0 else _QUIET
        plot([position] * 2, [low, high], color=colour, linewidth=2.4, solid_capstyle="butt", zorder=2)
    plot([position], [row["mean"]], marker="s", markersize=6, color=colour, zorder=3)
    seeds = row["differences"]
    dots = position + 0.18 + np.linspace(0, min(0.24, 0.07 * (len(seeds) - 1)), len(seeds))
    plot(dots, seeds, linestyle="none", zorder=4, **_SEED_MARK)


def _plain(axis: Axes, label: str, grid: Literal["x", "y"] = "y") -> None:
    axis.set_xlabel(label, color=_INK, fontsize=9)
    axis.grid(axis=grid, color="#E6E6E6", linewidth=0.7)
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=8.5, color=_QUIET, labelcolor=_INK)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(_QUIET)


def _xy(curve: list[Any], key: str) -> tuple[list[float], list[float]]:
    return [point[key] for point in curve], [point["hole_psnr"] for point in curve]


def _mean_curve(points: list[Any]) -> list[dict[str, float]]:
    """Average the seeds step by step, seconds included; steps that some seed lacks are left out."""
    by_step = [{point["step"]: point for point in curve} for curve in points]
    shared = sorted(set.intersection(*(set(curve) for curve in by_step)))
    return [
        {key: float(np.mean([curve[step][key] for curve in by_step])) for key in ("step", "seconds", "hole_psnr")}
        for step in shared
    ]


def _enlarge(image: Tensor, factor: int) -> npt.NDArray[np.uint8]:
    pixels = ((image.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
    enlarged: npt.NDArray[np.uint8] = pixels.repeat(factor, axis=0).repeat(factor, axis=1)
    return enlarged


def _write(figure: Figure, x: float, y: float, text: str, size: float) -> None:
    width, height = figure.get_size_inches() * _DPI
    figure.text(x / width, y / height, text, ha="center", va="center", fontsize=size, color=_INK)
