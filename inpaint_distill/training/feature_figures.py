"""What a hole does to features, attention and channel weights, drawn as PNG files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib.patheffects as effects
import numpy as np
from matplotlib import colormaps
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from torch import Tensor

__all__ = ["channel_weights", "network_maps"]

_MAP = "magma"  # uniform in lightness: dark is low, also in print and under every colour blindness
_INK = "#222222"
_OUTLINE: dict[str, Any] = {
    "colors": "white",
    "linewidths": 1.1,
    "path_effects": [effects.Stroke(linewidth=2.6, foreground="black"), effects.Normal()],
}
_DPI = 160
_CELL = 1.9  # inches


def network_maps(
    shown: Mapping[str, Tensor],
    rows: Sequence[tuple[str, Mapping[str, Tensor], Mapping[str, str]]],
    hole: Tensor,
    path: Path,
    *,
    scale: str,
    pixel: tuple[int, int] | None = None,
) -> Path:
    """Draw one column per network: on top the image it sees, below one row of maps after another.

    A row has one colour scale, spread by the square root, which ends at the 98th percentile of its values. Each map is
    stretched over the image without interpolation; the hole is outlined.

    Args:
        shown: For each network, by the title of its column, the image (3, H, W) in [-1, 1] that it sees.
        rows: Title of the row; for each network its map (h, w), >= 0, and a line that stands below it.
        hole: (H, W), 1 in the hole.
        path: PNG file to write.
        scale: What the colours mean.
        pixel: Row and column of a pixel to mark.
    """
    height, width = hole.shape
    cell = _CELL * height / width
    size = (_CELL * len(shown) + 1.3, (cell + 0.25) * (len(rows) + 1) + 0.3)
    figure = Figure(figsize=size, dpi=_DPI, facecolor="white", layout="constrained")
    grid = figure.subplots(len(rows) + 1, len(shown) + 1, squeeze=False, width_ratios=[1] * len(shown) + [0.05])
    axes, bars = grid[:, :-1], grid[:, -1]
    for axis, (title, image) in zip(axes[0], shown.items(), strict=True):
        axis.imshow(((image.clamp(-1, 1) + 1) / 2).permute(1, 2, 0).numpy(), extent=(0, width, height, 0))
        axis.set_title(title, color=_INK, fontsize=10)
    axes[0][0].set_ylabel("what it sees", color=_INK, fontsize=9)
    bars[0].set_visible(False)
    for line, bar, (title, maps, notes) in zip(axes[1:], bars[1:], rows, strict=True):
        values = np.concatenate([maps[name].numpy().ravel() for name in shown])
        highest = float(np.percentile(values, 98)) or float(values.max()) or 1.0
        norm = PowerNorm(0.5, 0, highest, clip=True)
        for axis, name in zip(line, shown, strict=True):
            pixels = maps[name].numpy()
            drawn = axis.imshow(pixels, cmap=_MAP, norm=norm, extent=(0, width, height, 0), interpolation="nearest")
            axis.set_xlabel(notes.get(name, ""), color=_INK, fontsize=8, labelpad=3)
        line[0].set_ylabel(title, color=_INK, fontsize=9)
        ticks = highest * np.linspace(0, 1, 5) ** 2  # evenly spaced on this scale
        extend = "max" if values.max() > highest else "neither"
        colours = figure.colorbar(drawn, cax=bar, ticks=ticks, extend=extend, format="%.2g")
        colours.set_label(scale, color=_INK, fontsize=8)
        bar.tick_params(labelsize=7)
        bar.minorticks_off()
    for axis in axes.ravel():
        _outline(axis, hole, pixel)
    figure.savefig(path)
    return path


def channel_weights(points: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Draw the weight of every channel over the training, one panel per level; 1 is uniform.

    Args:
        points: ``step`` and ``weights``, name to one weight per channel, which sum to 1, at each point of the training.
        path: PNG file to write.
    """
    names = list(points[-1]["weights"])
    columns = min(3, len(names))
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(3.2 * columns + 0.6, 2.4 * lines), dpi=_DPI, facecolor="white", layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    steps = [point["step"] for point in points]
    for axis, name in zip(axes, names, strict=False):
        weights = np.array([point["weights"][name] for point in points])
        relative = weights * weights.shape[1]
        colours = _ramp(relative[-1])
        for channel in np.argsort(relative[-1]):
            axis.plot(steps, relative[:, channel], color=colours[channel], linewidth=0.9)
        axis.axhline(1, color="#8A8A8A", linewidth=0.9, linestyle="--", zorder=0)
        axis.set_title(f"{name}, {weights.shape[1]} channels", color=_INK, fontsize=9)
        axis.set_xlabel("training steps", color=_INK, fontsize=8)
        axis.set_ylabel("weight / uniform weight", color=_INK, fontsize=8)
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[len(names) :]:
        axis.set_visible(False)
    figure.savefig(path)
    return path


def _ramp(values: Any) -> Any:
    """Return a colour for each value by its rank, without the end of the map that is too light on white."""
    ranks = np.argsort(np.argsort(values))
    return colormaps["viridis"](0.85 * ranks / max(1, len(values) - 1))


def _outline(axis: Axes, hole: Tensor, pixel: tuple[int, int] | None) -> None:
    """Draw the hole's edge and the chosen pixel, in image pixels, and take the ticks off."""
    height, width = hole.shape
    # Each pixel repeated, so that the outline follows the edges of the pixels and not their centres.
    fine = np.pad(hole.numpy().repeat(8, 0).repeat(8, 1), 1)
    rows, columns = (np.arange(-1, 8 * side + 1) / 8 + 1 / 16 for side in (height, width))
    axis.contour(columns, rows, fine, levels=[0.5], **_OUTLINE)
    if pixel is not None:
        axis.plot(
            pixel[1] + 0.5, pixel[0] + 0.5, marker="o", markersize=6, markerfacecolor="#56B4E9", markeredgecolor="black"
        )
    axis.set_xlim(0, width)
    axis.set_ylim(height, 0)
    axis.set_xticks([])
    axis.set_yticks([])
