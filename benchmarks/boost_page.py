"""Write the tables of docs/boost.md, docs/boost_cells.md and the README's results from docs/results/boost_study.json.

    python benchmarks/boost_page.py

The JSON is that of ``boost_study.py``; what lies of a cell in ``docs/results/boost-study/HOST-REGIME`` is linked. The
picture, ``docs/results/boost_study.png``, is drawn here.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boost_cells
import scipy.stats
from boost_rows import LONGER, NOT_RUN, Study, between, difference, outcome, table, value
from matplotlib.figure import Figure

from inpaint_distill.training.ablation import BLOCK, FILLED, WHOLE, WIDENED
from inpaint_distill.training.masks import BIN_NAMES
from inpaint_distill.training.statistics import paired_interval
from inpaint_distill.training.tables import COMPARISON_LABELS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes

# From the palette of Okabe and Ito; grey where the interval includes zero.
COLOURS = {"gain": "#0072B2", "loss": "#D55E00", "not shown": "#8A8A8A"}
MARKS = {"gain": "^", "loss": "v", "not shown": "s"}
INK = "#222222"
LEGEND = "blue, up: gain; orange, down: loss; grey square: the interval includes zero; large: mean over the hosts"
ALPHA = 0.05
OUTCOMES = {"gain": "a gain", "loss": "a loss", "not shown": "no gain is shown"}


def both(study: Study, host: str | None, regime: str) -> str:
    """Say what a cell, or the mean over the hosts, shows at equal steps and at equal wall-clock."""
    found = {label: study.row(host, regime, comparison) for comparison, label in COMPARISON_LABELS.items()}
    return ", ".join(f"{difference(row)} at {label} ({OUTCOMES[outcome(row)]})" for label, row in found.items() if row)


def finding(study: Study, regimes: Sequence[str]) -> str:
    """Say in a line per regime what the means over the hosts show on hole PSNR over all holes."""
    lines = []
    for regime in regimes:
        hosts = [host for host in study.hosts if (host, regime) in study.cells]
        if study.averaged(regime):
            said = f"{len(hosts)} hosts: {both(study, None, regime)}"
        elif hosts:
            said = "too few hosts for a mean: " + "; ".join(f"{host} {both(study, host, regime)}" for host in hosts)
        else:
            continue
        images = sorted({study.cells[host, regime]["images"]["train"] for host in hosts})
        lines.append(f"- {regime} ({' or '.join(f'{count:,}' for count in images)} training images), {said}")
    if not lines:
        return "No cell of the study has been run yet."
    head = "What block and distillation add to hole PSNR (dB), mean over the hosts [95% interval over hosts]:"
    fills = {  # of each set of test images
        study.photographs[regime]: f"{cell['fills']['interpolation']:.2f} dB"
        for (_, regime), cell in study.cells.items()
        if cell.get("fills") and regime in regimes
    }
    if fills:
        said = " and ".join(f"{text} on {name}" if len(fills) > 1 else text for name, text in fills.items())
        lines.append(f"- for scale: interpolation of the holes, without a network, has {said}")
    return "\n".join([head, "", *lines])


def headline(study: Study) -> str:
    """Write a row per cell with the hole PSNR, one per regime with the mean over the hosts, and what is not run."""
    rows: list[Sequence[str]] = []
    for host, regime in study.run():
        cell, steps, longer = study.cells[host, regime], *(study.row(host, regime, c) for c in COMPARISON_LABELS)
        values = (value(steps, "baseline_mean"), value(steps, "arm_mean"), difference(steps))
        pairs = str(steps["pairs"] if steps else 0)
        costs = [f"{cell[key][WHOLE]:.2f}x" for key in ("cost_ratio", "cost_ratio_active")]
        train = f"{cell['images']['train']:,}"
        rows.append((host, regime, train, *values, value(longer, "baseline_mean"), difference(longer), pairs, *costs))
    for regime in study.regimes:
        steps, longer = (study.row(None, regime, c) for c in COMPARISON_LABELS)
        if study.averaged(regime):
            rows.append(
                (f"mean of {steps['pairs']} hosts", regime, "", "", "", difference(steps), "", difference(longer))
            )
    differences = [f"difference, {label} [95%]" for label in COMPARISON_LABELS.values()]
    head = (
        "host",
        "regime",
        "training images",
        "host alone",
        "with block and distillation",
        differences[0],
        "host alone, longer",
    )
    tail = (differences[1], "pairs", "step", "step before the fade")
    text = f"{finding(study, study.regimes)}\n\n{table((*head, *tail), rows, 2)}"
    missing = {
        regime: ", ".join(host for host in study.hosts_of[regime] if (host, regime) not in study.cells)
        for regime in study.regimes
    }
    absent = "; ".join(f"{regime}: {hosts}" for regime, hosts in missing.items() if hosts)
    return f"{text}\n\n{NOT_RUN.capitalize()}: {absent}." if absent else text


def later(study: Study) -> str:
    """Write what the first pairs of a cell show and what those do that its host was given beyond the protocol's."""
    rows: list[Sequence[str]] = []
    for (host, regime), (comparison, label) in itertools.product(study.run(), COMPARISON_LABELS.items()):
        row = study.row(host, regime, comparison)
        if row and row["pairs"] > study.pairs:
            parts = (row["differences"][: study.pairs], row["differences"][study.pairs :], row["differences"])
            found = [paired_interval([0.0] * len(part), part) for part in parts]
            rows.append((host, regime, label, *(between(row, each) for each in found)))
    heads = (f"the first {study.pairs}", "those added", "all")
    return table(("host", "regime", "at", *heads), rows, 3) if rows else f"{NOT_RUN.capitalize()}."


def ratios(study: Study) -> str:
    """Write the means over the hosts by hole ratio, and how much more the largest holes gain than the smallest."""
    names = ("all", *BIN_NAMES)
    rows: list[Sequence[str]] = []
    for regime, (comparison, label) in itertools.product(study.regimes, COMPARISON_LABELS.items()):
        own = [study.row(None, regime, comparison, name=name) for name in names]
        if not study.averaged(regime, comparison) or None in own:
            continue
        small, large = (
            [study.row(host, regime, comparison, name=name)["mean"] for host in own[0]["hosts"]]
            for name in (BIN_NAMES[0], BIN_NAMES[-1])
        )
        more = between(own[0], paired_interval(small, large))
        rows.append((f"{own[0]['pairs']} hosts", regime, label, *map(difference, own), more))
    heads = ("all", *(f"{name}%" for name in BIN_NAMES), f"{BIN_NAMES[-1]}% minus {BIN_NAMES[0]}%")
    return table(("mean of", "regime", "at", *heads), rows, 3) if rows else f"{NOT_RUN.capitalize()}."


def parts(study: Study) -> str:
    """Write what the block does without distillation, what distillation adds, and what another start does."""
    compared = {
        ("steps", BLOCK): "block alone",
        ("steps", WHOLE): "block and distillation",
        ("block", WHOLE): "distillation minus block",
        ("block_time", WHOLE): "distillation minus block, equal wall-clock",
        (LONGER, BLOCK): "block alone minus host alone, longer",
        ("steps", "interpolation_start"): "block starting at the interpolation",
    }
    return side_by_side(study, compared, ("block", WHOLE), BLOCK)


def control(study: Study) -> str:
    """Write what interpolated holes do alone, and what block and distillation do more."""
    compared = {
        ("steps", FILLED): "holes interpolated",
        ("filled", BLOCK): "block minus that",
        ("filled", WHOLE): "block and distillation minus that",
        ("filled_time", WHOLE): "the same, equal wall-clock",
    }
    return side_by_side(study, compared, ("steps", FILLED), FILLED)


def wider(study: Study) -> str:
    """Write what a wider host does, and what the block, and block and distillation, do more."""
    compared = {
        ("steps", WIDENED): "wider host",
        ("widened", BLOCK): "block minus that",
        ("widened", WHOLE): "block and distillation minus that",
    }
    return side_by_side(study, compared, ("steps", WIDENED), WIDENED)


def side_by_side(study: Study, compared: Mapping[tuple[str, str], str], needed: tuple[str, str], arm: str) -> str:
    """Write some differences in hole PSNR of each cell, and of the mean over the hosts.

    Args:
        study: The study.
        compared: Heads of the columns, by comparison and arm; those of what no cell has are left out.
        needed: The one without which a cell is left out.
        arm: The arm whose step stands before that with distillation.
    """
    whose = [*study.hosts, None]
    compared = {
        key: head
        for key, head in compared.items()
        if any(study.row(host, regime, key[0], arm=key[1]) for regime in study.regimes for host in whose)
    }
    rows: list[Sequence[str]] = []
    for regime, host in itertools.product(study.regimes, whose):
        found = {key: study.row(host, regime, key[0], arm=key[1]) for key in compared}
        own = found.get(needed)
        if own is None or (host is None and not study.averaged(regime, needed[0], arm=needed[1])):
            continue
        name = host or f"mean of {own['pairs']} hosts"
        if host is None:  # of as many hosts, or of none
            found = {key: row if row and row["pairs"] == own["pairs"] else None for key, row in found.items()}
        costs = [f"{study.cells[host, regime]['cost_ratio'][each]:.2f}x" for each in (arm, WHOLE)] if host else []
        texts = ["" if row is None else difference(row) for row in found.values()]
        rows.append((name, regime, *texts, str(own["pairs"]) if host else "", *costs))
    if not rows:
        return f"{NOT_RUN.capitalize()}."
    return table(("host", "regime", *compared.values(), "pairs", f"step, {compared['steps', arm]}", "step"), rows, 2)


def many(study: Study) -> str:
    """Write how many cells show a difference, and how many still do with Holm's correction for that many cells."""
    compared = {
        ("steps", WHOLE): "block and distillation, equal steps",
        ("time", WHOLE): "block and distillation, equal wall-clock",
        ("steps", BLOCK): "block alone, equal steps",
        ("block", WHOLE): "distillation minus block, equal steps",
    }
    rows: list[Sequence[str]] = []
    for (comparison, arm), name in compared.items():
        found = {place: study.row(*place, comparison, arm=arm) for place in study.run()}
        chances = {place: chance(row["differences"]) for place, row in found.items() if row and row["pairs"] > 1}
        kept = holm(chances)
        shown = [place for place, each in chances.items() if each < ALPHA]
        gone = ", ".join(" ".join(place) for place in shown if place not in kept)
        rows.append((name, str(len(chances)), str(len(shown)), str(len(kept)), gone or "none"))
    head = ("difference in hole PSNR", "cells", "shown", "with the correction", "no longer")
    return table(head, rows, 1)


def chance(differences: Sequence[float]) -> float:
    """Return how likely differences so far from zero are without any effect: Student's t, both sides."""
    mean, error = statistics.fmean(differences), statistics.stdev(differences) / math.sqrt(len(differences))
    if not error:
        return 0.0 if mean else 1.0
    return float(2 * scipy.stats.t.sf(abs(mean) / error, len(differences) - 1))


def holm(chances: Mapping[tuple[str, str], float]) -> list[tuple[str, str]]:
    """Return which of several differences are still shown when the chance of a single false one is to be 5 % (Holm)."""
    kept: list[tuple[str, str]] = []
    for place in sorted(chances, key=lambda place: chances[place]):
        if chances[place] >= ALPHA / (len(chances) - len(kept)):
            break
        kept.append(place)
    return kept


def filled(study: Study) -> str:
    """Write the hole PSNR of the hosts that were trained in both ways, with holes emptied and interpolated."""
    rows = []
    for host in study.hosts:
        found = [study.row(host, regime, "steps") for regime in ("small", "interpolated")]
        if None not in found:
            rows.append((host, *(value(row, key) for row in found for key in ("baseline_mean", "arm_mean"))))
    heads = [
        f"{hole}, {arm}"
        for hole in ("emptied", "interpolated")
        for arm in ("host alone", "with block and distillation")
    ]
    return table(("host", *heads), rows, 1) if rows else f"{NOT_RUN.capitalize()}."


def short(study: Study) -> str:
    """Write the README's block: picture, findings, and a row per host of the regimes that several hosts have run.

    Of the first of them also what the block and interpolated holes do alone, at equal steps. Of a regime of other hosts
    there is the finding alone.
    """
    begun = [regime for regime in study.regimes if any(place[1] == regime for place in study.cells)]
    told = [regime for regime in begun if study.averaged(regime)] or begun
    hosts = study.hosts_of[told[0]] if told else []
    regimes = [regime for regime in told if study.hosts_of[regime] == hosts]
    columns = [(regime, key, WHOLE, label) for regime in regimes for key, label in COMPARISON_LABELS.items()]
    alone = {BLOCK: "block alone", FILLED: "interpolated holes alone"}
    columns += [(regimes[0], "steps", arm, label) for arm, label in alone.items() if regimes]
    rows = []
    for host in (*hosts, None):
        row = [host or "mean over hosts"]
        for regime, comparison, arm, _ in columns:
            found = study.row(host, regime, comparison, arm=arm)
            if host is None:
                every = len([each for each in hosts if (each, regime) in study.cells])
                fewer = f" ({found['pairs']} hosts)" if found and found["pairs"] < every else ""
                row.append(difference(found) + fewer if study.averaged(regime, comparison, arm=arm) else "")
            elif (host, regime) not in study.cells:
                row.append(NOT_RUN)
            else:
                row.append("" if found is None and arm != WHOLE else difference(found))
        costs = [study.cells[host, regime]["cost_ratio"][WHOLE] for regime in regimes if (host, regime) in study.cells]
        rows.append((*row, ", ".join(f"{cost:.2f}x" for cost in costs)))
    picture = "![hole PSNR: difference that block and distillation make, per host](docs/results/boost_study.png)"
    words = (
        f"{finding(study, told)}\n\nHost by host: differences on the test images with 95% intervals over the seeds, "
        "bold where they exclude zero. [docs/boost.md](docs/boost.md) has protocol, means and limits, "
        "[docs/boost_cells.md](docs/boost_cells.md) every host and metric."
    )
    head = ("host", *(f"{regime}, {label}" for regime, _, _, label in columns), f"step: {', '.join(regimes)}")
    return f"{picture}\n\n{words}\n\n{table(head, rows, 1)}"


def forest(study: Study, path: Path) -> None:
    """Draw the difference in hole PSNR of every cell and the means over the hosts, one column per comparison.

    The axis is that of the cells: the interval of a mean over few hosts may run out of it.
    """
    regimes = [regime for regime in study.regimes if any(place[1] == regime for place in study.cells)]
    lines = [
        (regime, host)
        for regime in regimes
        for host in (*study.hosts, None)
        if (study.averaged(regime) if host is None else (host, regime) in study.cells)
    ]
    figure = Figure(figsize=(8.4, 1.2 + 0.29 * len(lines)), dpi=200, facecolor="white", layout="constrained")
    axes = figure.subplots(1, len(COMPARISON_LABELS), sharey=True, sharex=True)
    for axis, (comparison, label) in zip(axes, COMPARISON_LABELS.items(), strict=True):
        axis.axvline(0, color=INK, linewidth=0.9, zorder=1)
        for position, (regime, host) in enumerate(lines):
            draw(axis, position, study.row(host, regime, comparison), mean=host is None)
        axis.set_title(label, color=INK, fontsize=10)
        axis.set_xlabel("difference in hole PSNR (dB), 95% interval", color=INK, fontsize=9)
        axis.grid(axis="x", color="#E6E6E6", linewidth=0.7)
        axis.set_axisbelow(True)
        axis.tick_params(labelsize=8.5, labelcolor=INK)
        axis.spines[["top", "right"]].set_visible(False)
        for edge, (regime, _) in enumerate(lines[:-1]):
            if lines[edge + 1][0] != regime:
                axis.axhline(edge + 0.5, color="#BBBBBB", linewidth=0.8)
    bounds = [
        row[key]
        for row in study.rows.values()
        if (row["arm"], row["metric"], row["bin"]) == (WHOLE, "hole_psnr", "all")
        and row["comparison"] in COMPARISON_LABELS
        for key in ("mean", "low", "high")
    ]
    shown = [0.0, *(bound for bound in bounds if bound is not None)]
    margin = 0.1 * (max(shown) - min(shown)) or 0.1
    axes[0].set_xlim(min(shown) - margin, max(shown) + margin)
    axes[0].set_yticks(range(len(lines)), [f"{host or 'mean over hosts'}, {regime}" for regime, host in lines])
    axes[0].set_ylim(len(lines) - 0.4, -0.6)
    figure.supxlabel(LEGEND, color=INK, fontsize=8)
    figure.savefig(path)


def draw(axis: Axes, position: int, row: Mapping[str, Any] | None, *, mean: bool) -> None:
    """Draw one difference with its interval along the horizontal axis."""
    if row is None:
        return
    found = outcome(row)
    if row["low"] is not None:
        width = 4.0 if mean else 1.8
        axis.plot([row["low"], row["high"]], [position] * 2, color=COLOURS[found], linewidth=width, zorder=2)
    axis.plot(
        [row["mean"]], [position], marker=MARKS[found], markersize=9 if mean else 6, color=COLOURS[found], zorder=3
    )


def insert(file: Path, blocks: Mapping[str, str]) -> None:
    """Replace what stands between the marks of each block."""
    text = file.read_text(encoding="utf-8")
    for name, body in blocks.items():
        before, rest = text.split(f"<!-- {name} -->")
        text = f"{before}<!-- {name} -->\n{body}\n<!-- /{name} -->{rest.split(f'<!-- /{name} -->')[1]}"
    file.write_text(text, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the picture, both pages and the README's block."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1], help="folder of README.md and docs")
    root = parser.parse_args(arguments).root
    results = root / "docs" / "results"
    study = Study(json.loads((results / "boost_study.json").read_text(encoding="utf-8")))
    forest(study, results / "boost_study.png")
    page = {write.__name__: write(study) for write in (headline, later, ratios, many, parts, control, wider, filled)}
    insert(root / "docs" / "boost.md", page)
    insert(root / "docs" / "boost_cells.md", boost_cells.tables(study, results))
    insert(root / "README.md", {"results": short(study)})


if __name__ == "__main__":
    main()
