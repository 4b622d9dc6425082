"""The comparisons of a boost study in words and tables: sentences, Markdown, the terminal."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from inpaint_distill.training.ablation import ARM_LABELS, BARE, LONGER_OF, WHOLE
from inpaint_distill.training.result import interval_of, made_contrasts, main_split
from inpaint_distill.training.statistics import Interval, sentence, verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from inpaint_distill.training.ablation import Contrast
    from inpaint_distill.training.statistics import Verdict

__all__ = [
    "COMPARISON_LABELS",
    "METRIC_FORMATS",
    "SPLIT_LABELS",
    "Cell",
    "contrast_label",
    "detail",
    "detail_head",
    "headlines",
    "markdown_overview",
    "markdown_table",
    "measured",
    "overview",
    "overview_head",
    "print_table",
]

COMPARISON_LABELS = {"steps": "equal steps", "time": "equal wall-clock"}
SPLIT_LABELS = {"test": "test images", "val": "validation images"}

# Name, number of decimals, factor that makes more better.
METRIC_FORMATS = {
    "hole_psnr": ("hole PSNR (dB) ↑", 2, 1),
    "psnr": ("PSNR (dB) ↑", 2, 1),
    "ssim": ("SSIM ↑", 4, 1),
    "l1": ("L1 ↓", 4, -1),
    "lpips": ("LPIPS ↓", 4, -1),
    "fid": ("FID ↓", 2, -1),
}


class Cell(NamedTuple):
    """One cell of a table: its text, and what the difference in it shows."""

    text: str
    outcome: Verdict = "not shown"


def contrast_label(contrast: Contrast) -> str:
    """Say in a few words what is compared.

    >>> from inpaint_distill.training.ablation import Contrast
    >>> contrast_label(Contrast("steps", "bare", "cross"))
    '+ cross-distillation against host, equal steps'
    """
    return f"{ARM_LABELS[contrast.arm]} against {_baseline_label(contrast)}, {COMPARISON_LABELS[contrast.comparison]}"


def headlines(result: Mapping[str, Any]) -> list[tuple[Verdict, str]]:
    """Return verdict and sentence on the hole PSNR over all holes, for each contrast, on the split that counts."""
    found: list[tuple[Verdict, str]] = []
    split = main_split(result)
    for contrast in made_contrasts(result):
        row = _rows(result, split, contrast)["hole_psnr", "all"]
        interval = interval_of(row)
        where = COMPARISON_LABELS[contrast.comparison] + (", validation images" if split == "val" else "")
        if contrast.arm == WHOLE:
            text = sentence(interval, f"hole PSNR at {where}")
        else:
            text = f"{ARM_LABELS[contrast.arm]} against {_baseline_label(contrast)}, {where}: {_finding(interval)}"
        found.append((verdict(interval), text))
    return found


def measured(result: Mapping[str, Any], split: str) -> tuple[str, ...]:
    """Return the metrics that every contrast of a result has on a split, in the order of the tables."""
    found = [{metric for metric, _ in _rows(result, split, contrast)} for contrast in made_contrasts(result)]
    return tuple(metric for metric in METRIC_FORMATS if any(found) and all(metric in own for own in found if own))


def overview_head(metrics: Iterable[str]) -> tuple[str, ...]:
    """Return the heads of the columns of :func:`overview`."""
    return ("arm", "against", *(METRIC_FORMATS[metric][0] for metric in metrics), "pairs", "step", "parameters")


def overview(result: Mapping[str, Any], split: str, metrics: Sequence[str]) -> list[tuple[Cell, ...]]:
    """Return one row per contrast: the difference in each metric over all holes, with what the arm costs.

    The first row has the bare host's own values. ``step`` is the cost of a training step in steps of the bare host,
    ``parameters`` what the trained host has.
    """
    table: list[tuple[Cell, ...]] = []
    for contrast in made_contrasts(result):
        rows = _rows(result, split, contrast)
        if not rows:
            continue
        chosen = [rows[metric, "all"] for metric in metrics]
        pairs = str(chosen[0]["pairs"])
        if not table and contrast.baseline == BARE:
            means = (Cell(_value(row, "baseline_mean")) for row in chosen)
            table.append((Cell(ARM_LABELS[BARE]), Cell(""), *means, Cell(pairs), *_costs(result, BARE)))
        against = _baseline_label(contrast) + (", equal wall-clock" if contrast.baseline in LONGER_OF else "")
        differences = (Cell(_difference(row), _outcome(row)) for row in chosen)
        arm = Cell(ARM_LABELS[contrast.arm])
        table.append((arm, Cell(against), *differences, Cell(pairs), *_costs(result, contrast.arm)))
    return table


def detail_head(contrast: Contrast) -> tuple[str, ...]:
    """Return the heads of the columns of :func:`detail`, after those of metric and holes."""
    baseline = _baseline_label(contrast)
    return (baseline, ARM_LABELS[contrast.arm], "difference [95%]", "pairs")


def detail(
    result: Mapping[str, Any], split: str, contrast: Contrast, metrics: Iterable[str] = METRIC_FORMATS
) -> list[tuple[str, tuple[Cell, ...]]]:
    """Return one row per metric and bin of hole ratios: the metric, then holes and the columns of the head."""
    rows = _rows(result, split, contrast)
    return [
        (
            metric,
            (
                Cell("all" if name == "all" else f"{name}%"),
                Cell(_value(row, "baseline_mean")),
                Cell(_value(row, "arm_mean")),
                Cell(_difference(row), _outcome(row)),
                Cell(str(row["pairs"])),
            ),
        )
        for metric in metrics
        for (own, name), row in rows.items()
        if own == metric
    ]


def markdown_table(result: Mapping[str, Any], metrics: Sequence[str] = ("hole_psnr",)) -> str:
    """Return the contrasts in Markdown by bin of hole ratios, on the split that counts."""
    made = made_contrasts(result)
    alone = {contrast.arm for contrast in made} == {WHOLE}
    columns = detail_head(made[0]) if alone else ("baseline", "arm", "difference [95%]", "pairs")
    lines = _markdown_head(("at", "metric", "holes", *columns), left=3)
    for contrast in made:
        label = COMPARISON_LABELS[contrast.comparison] if alone else contrast_label(contrast)
        lines += [
            _markdown_row((label, METRIC_FORMATS[metric][0], *(cell.text for cell in cells)))
            for metric, cells in detail(result, main_split(result), contrast, metrics)
        ]
    return "\n".join(lines) + "\n"


def markdown_overview(result: Mapping[str, Any], splits: Sequence[str] = tuple(SPLIT_LABELS)) -> str:
    """Return one Markdown table per split that was scored, with one row per contrast."""
    parts = []
    for split in splits:
        metrics = measured(result, split)
        rows = overview(result, split, metrics)
        if rows:
            head = _markdown_head(overview_head(metrics), left=2)
            body = [_markdown_row([cell.text for cell in row]) for row in rows]
            parts.append("\n".join([f"On the {SPLIT_LABELS[split]}:\n", *head, *body]))
    return "\n\n".join(parts) + "\n"


def print_table(
    result: Mapping[str, Any], metrics: Sequence[str] = ("hole_psnr",), console: Console | None = None
) -> None:
    """Print one table per contrast and metric, or one for all contrasts of an ablation, then the sentences."""
    console = console or Console()
    split, made = main_split(result), made_contrasts(result)
    for metric in metrics:
        name = METRIC_FORMATS[metric][0]
        if {contrast.arm for contrast in made} != {WHOLE}:
            title = f"{result['host']['name']}, {SPLIT_LABELS[split]}: {name}"
            lines = [(arm, against, own, step) for arm, against, own, _, step, _ in overview(result, split, (metric,))]
            _print(console, title, ("arm", "against", "difference [95%]", "step"), lines)
            continue
        for contrast in made:
            title = f"{result['host']['name']}, {COMPARISON_LABELS[contrast.comparison]}: {name}"
            rows = [cells for _, cells in detail(result, split, contrast, (metric,))]
            _print(console, title, ("holes", *detail_head(contrast)), rows)
    for _, text in headlines(result):
        console.print(Text(text), soft_wrap=True)


def _print(console: Console, title: str, head: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
    table = Table(title=Text(title), title_justify="left")
    for index, name in enumerate(head):
        left = index == 0 or name == "against"
        table.add_column(Text(name), justify="left" if left else "right", no_wrap=name != "against")
    for row in rows:
        table.add_row(*(Text(c.text, style={"gain": "green", "loss": "red"}.get(c.outcome, "")) for c in row))
    console.print(table)


def _rows(result: Mapping[str, Any], split: str, contrast: Contrast) -> dict[tuple[str, str], Mapping[str, Any]]:
    """Return the rows of one contrast by metric and bin."""
    wanted = (split, *contrast)
    return {
        (row["metric"], row["bin"]): row
        for row in result["comparisons"]
        if (row["split"], row["comparison"], row["baseline"], row["arm"]) == wanted
    }


def _baseline_label(contrast: Contrast) -> str:
    return ARM_LABELS[LONGER_OF.get(contrast.baseline, contrast.baseline)]


def _outcome(row: Mapping[str, Any]) -> Verdict:
    """Return the verdict with the direction of the metric taken into account."""
    interval = interval_of(row)
    if METRIC_FORMATS[row["metric"]][2] < 0:
        interval = Interval(-interval.mean, -interval.high, -interval.low, interval.pairs)
    return verdict(interval)


def _value(row: Mapping[str, Any], key: str) -> str:
    return f"{row[key]:.{METRIC_FORMATS[row['metric']][1]}f}"


def _difference(row: Mapping[str, Any]) -> str:
    digits, interval = METRIC_FORMATS[row["metric"]][1], interval_of(row)
    text = f"{interval.mean:+.{digits}f}"
    if math.isfinite(interval.low) and math.isfinite(interval.high):
        text += f" [{interval.low:+.{digits}f}, {interval.high:+.{digits}f}]"
    return text


def _finding(interval: Interval) -> str:
    """Say what an arm's difference in hole PSNR shows."""
    text = f"hole PSNR {interval.mean:+.2f} dB"
    if interval.pairs < 2:
        return f"{text}; one pair of runs shows nothing about chance."
    outcome = {"gain": "a gain", "loss": "a loss", "not shown": "no effect is shown"}[verdict(interval)]
    evidence = f"{interval.confidence:.0%} interval {interval.low:.2f} to {interval.high:.2f}"
    return f"{text}, {outcome} ({evidence}, {interval.pairs} paired runs)."


def _costs(result: Mapping[str, Any], arm: str) -> tuple[Cell, Cell]:
    """Return the cost of an arm's step and the parameters of its host; runs of old results do not tell the latter."""
    own = next((run["parameters"] for run in result["runs"] if run["arm"] == arm and "parameters" in run), None)
    return Cell(f"{result['cost']['ratio'][arm]:.2f}x"), Cell("" if own is None else f"{own:,}")


def _markdown_row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _markdown_head(names: Sequence[str], left: int) -> list[str]:
    return [_markdown_row(names), "|" + "---|" * left + "--:|" * (len(names) - left)]
