"""Write the tables of docs/boost.md and the README's results from docs/results/boost_study.json.

    python benchmarks/boost_page.py

The JSON is that of ``boost_study.py``; what lies of a cell in ``docs/results/boost-study/HOST-REGIME`` is linked. The
picture, ``docs/results/boost_study.png``, is drawn here.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import re
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from inpaint_distill.training.ablation import BARE, BLOCK, FILLED, WHOLE
from inpaint_distill.training.explained import PARTS
from inpaint_distill.training.masks import BIN_NAMES
from inpaint_distill.training.result import interval_of
from inpaint_distill.training.statistics import paired_interval, verdict
from inpaint_distill.training.tables import COMPARISON_LABELS, METRIC_FORMATS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from matplotlib.axes import Axes

    from inpaint_distill.training.statistics import Interval

# From the palette of Okabe and Ito; grey where the interval includes zero.
COLOURS = {"gain": "#0072B2", "loss": "#D55E00", "not shown": "#8A8A8A"}
MARKS = {"gain": "^", "loss": "v", "not shown": "s"}
INK = "#222222"
LEGEND = "blue, up: gain; orange, down: loss; grey square: the interval includes zero; large: mean over the hosts"
OUTCOMES = {"gain": "a gain", "loss": "a loss", "not shown": "no gain is shown"}
NOT_RUN, NOT_MEASURED = "not yet run", "not measured"
COMMAND = "python benchmarks/boost_study.py --data PHOTOS --masks MASKS --out STUDY"
FILES = {
    "all metrics": "table.md",
    "JSON": "result.json",
    "curves": "curves.png",
    "differences": "forest.png",
    "images": "panels.png",
    "features": "inspect/features.png",
}


class Study:
    """A ``boost_study.json`` with its rows by what they are about."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        protocol = content["protocol"]
        self.hosts = [each["name"] for each in protocol["hosts"]]
        self.regimes = list(protocol["regimes"])
        self.pairs = len(protocol.get("settings", {}).get("seeds", ()))
        self.cells = {(each["host"], each["regime"]): each for each in content["cells"]}
        names = ("regime", "arm", "comparison", "metric", "bin")
        self.rows = {(row["host"], *(row[name] for name in names)): row for row in content["rows"]}
        self.means = {
            tuple(row[name] for name in names): {**row, "pairs": len(row["hosts"])} for row in content["overall"]
        }

    def run(self) -> list[tuple[str, str]]:
        """Return host and regime of every cell that has been run, host by host."""
        return [(host, regime) for host in self.hosts for regime in self.regimes if (host, regime) in self.cells]

    def row(
        self,
        host: str | None,
        regime: str,
        comparison: str,
        metric: str = "hole_psnr",
        name: str = "all",
        *,
        arm: str = WHOLE,
    ) -> Any:
        """Return a row of a cell, or that of the mean over the hosts; ``None`` where nothing is measured."""
        key = (regime, arm, comparison, metric, name)
        return self.means.get(key) if host is None else self.rows.get((host, *key))

    def averaged(self, regime: str, comparison: str = "steps", *, arm: str = WHOLE) -> bool:
        """Tell whether there is a mean over more than half of the hosts: one over few says nothing of the others."""
        row = self.row(None, regime, comparison, arm=arm)
        return row is not None and row["pairs"] > len(self.hosts) / 2


def outcome(row: Mapping[str, Any]) -> str:
    """Return gain, loss or not shown, with the direction of the metric taken into account."""
    found = verdict(interval_of(row))
    return {"gain": "loss", "loss": "gain"}.get(found, found) if METRIC_FORMATS[row["metric"]][2] < 0 else found


def difference(row: Mapping[str, Any] | None) -> str:
    """Write a difference with its interval, bold where that excludes zero."""
    if row is None:
        return NOT_MEASURED
    digits = METRIC_FORMATS[row["metric"]][1]
    text = f"{row['mean']:+.{digits}f}"
    if row["low"] is not None:
        text += f" [{row['low']:+.{digits}f}, {row['high']:+.{digits}f}]"
    return text if outcome(row) == "not shown" else f"**{text}**"


def value(row: Mapping[str, Any] | None, key: str) -> str:
    """Write the mean of an arm."""
    return NOT_MEASURED if row is None else f"{row[key]:.{METRIC_FORMATS[row['metric']][1]}f}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], left: int) -> str:
    """Write a table in Markdown, the first columns aligned left; rows that are cut short are filled up."""
    full = [(*row, *[""] * (len(head) - len(row))) for row in rows]
    rule = "|" + "---|" * left + "--:|" * (len(head) - left)
    return "\n".join([f"| {' | '.join(head)} |", rule, *(f"| {' | '.join(row)} |" for row in full)])


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
    fills = sorted({f"{cell['fills']['interpolation']:.2f}" for cell in study.cells.values() if cell.get("fills")})
    if fills:
        lines.append(f"- for scale: interpolation of the holes, without a network, has {' or '.join(fills)} dB")
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
        regime: ", ".join(host for host in study.hosts if (host, regime) not in study.cells) for regime in study.regimes
    }
    absent = "; ".join(f"{regime}: {hosts}" for regime, hosts in missing.items() if hosts)
    return f"{text}\n\n{NOT_RUN.capitalize()}: {absent}." if absent else text


def bins(study: Study) -> str:
    """Write the differences in hole PSNR by hole ratio, and how much more the largest holes gain than the smallest."""
    names = ("all", *BIN_NAMES)
    heads = ["all", *(f"{name}%" for name in BIN_NAMES), f"{BIN_NAMES[-1]}% minus {BIN_NAMES[0]}%"]
    return by_column(study, [("hole_psnr", name) for name in names], heads, large_holes)


def large_holes(study: Study, host: str, regime: str, comparison: str) -> str:
    """Write what a cell's largest holes gain more than its smallest, seed by seed."""
    small, large = (study.row(host, regime, comparison, "hole_psnr", name) for name in (BIN_NAMES[0], BIN_NAMES[-1]))
    if small is None or large is None:
        return difference(None)
    return between(large, paired_interval(small["differences"], large["differences"]))


def between(row: Mapping[str, Any], interval: Interval) -> str:
    """Write another interval of a row's metric; of one pair it has no bounds."""
    low, high = (None if math.isnan(bound) else bound for bound in (interval.low, interval.high))
    return difference({**row, "pairs": interval.pairs, "mean": interval.mean, "low": low, "high": high})


def lacking(study: Study) -> str:
    """Write the differences as shares of what a host lacks to the best one on the page, by hole ratio.

    Rows of the best one, and of a host that lacks nothing in holes of some ratio, are left out.
    """
    names = ("all", *BIN_NAMES)
    scores = {place: row["arm_mean"] for place in study.run() if (row := study.row(*place, "steps")) is not None}
    best = max(scores, key=lambda place: scores[place], default=("", ""))
    rows: list[Sequence[str]] = []
    for (host, regime), (comparison, label) in itertools.product(study.run(), COMPARISON_LABELS.items()):
        found = [
            (study.row(host, regime, comparison, name=name), study.row(*best, "steps", name=name)) for name in names
        ]
        gaps = [there["arm_mean"] - row["baseline_mean"] for row, there in found if row and there]
        if host == best[0] or len(gaps) < len(names) or min(gaps) <= 0:
            continue
        shares = [[each / gap for each in row["differences"]] for (row, _), gap in zip(found, gaps, strict=True)]
        more = percent(paired_interval(shares[1], shares[-1]))
        rows.append((host, regime, label, *(f"{statistics.fmean(share):.0%}" for share in shares), more))
    if not rows:
        return f"{NOT_RUN.capitalize()}."
    heads = ("all", *(f"{name}%" for name in BIN_NAMES), f"{BIN_NAMES[-1]}% minus {BIN_NAMES[0]}% (points)")
    head = f"The best is {best[0]} in `{best[1]}`, with distillation."
    return f"{head}\n\n{table(('host', 'regime', 'at', *heads), rows, 3)}"


def percent(interval: Interval) -> str:
    """Write an interval in percentage points, bold where it excludes zero."""
    text = f"{100 * interval.mean:+.0f}"
    if not math.isnan(interval.low):
        text += f" [{100 * interval.low:+.0f}, {100 * interval.high:+.0f}]"
    return text if verdict(interval) == "not shown" else f"**{text}**"


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


def metrics(study: Study) -> str:
    """Write the differences in the other metrics over all holes."""
    others = [name for name in METRIC_FORMATS if name != "hole_psnr"]
    return by_column(study, [(name, "all") for name in others], [METRIC_FORMATS[name][0] for name in others])


def by_column(
    study: Study,
    columns: Sequence[tuple[str, str]],
    heads: Sequence[str],
    *further: Callable[[Study, str, str, str], str],
) -> str:
    """Write a row per cell and comparison, a column per metric and bin, and further ones."""
    rows: list[Sequence[str]] = []
    for host, regime in study.run():
        for comparison, label in COMPARISON_LABELS.items():
            cells = [difference(study.row(host, regime, comparison, *column)) for column in columns]
            cells += [write(study, host, regime, comparison) for write in further]
            rows.append((host, regime, label, *cells))
    return table(("host", "regime", "at", *heads), rows, 3)


def training(study: Study, results: Path) -> str:
    """Write how each host was trained, and whether it had learned all it could."""
    rows: list[Sequence[str]] = []
    notes: dict[str, list[str]] = {}
    for host, regime in study.run():
        cell = study.cells[host, regime]
        tried = ", ".join(f"{trial['lr']:g}" for trial in cell["tuning"])
        flat = [cell["flatness"][key] for key in ("last_fifth", "longer")]
        stuck = ", ".join(f"{run['arm']} seed {run['seed']}" for run in cell["stuck"]) or "none"
        facts = (
            f"{cell['parameters']:,}",
            f"{cell['steps']:,} x {cell['settings']['batch']}",
            f"{cell['lr']:g} of {tried}",
        )
        changes = [NOT_MEASURED if each is None else f"{each:+.2f}" for each in flat]
        rows.append((host, regime, *facts, *changes, given_back(results / folder_of(host, regime)), stuck))
        departs = [f"{key} is {found}, not {asked}" for key, (asked, found) in cell["departures"].items()]
        others = [text for text in cell["warnings"] if not text.endswith("(stuck)")]  # those have their column
        for text in (*departs, *others):
            # Without the numbers of each cell, which have their columns: what is said of several is said once.
            notes.setdefault(re.sub(r" \([^)]*\d[^)]*\)", "", text), []).append(f"{host}, {regime}")
    head = (
        "host",
        "regime",
        "parameters",
        "steps x batch",
        "learning rate",
        "last fifth (dB)",
        "longer (dB)",
        "known luma, chroma",
        "stuck runs",
    )
    everywhere = len(rows)
    lines = [f"- {'every cell' if len(c) == everywhere > 1 else '; '.join(c)}: {text}" for text, c in notes.items()]
    return table(head, rows, 2) + "".join(f"\n{line}" for line in ["", *lines] if lines)


def folder_of(host: str, regime: str) -> str:
    """Return where the files of a cell lie, below the results."""
    return f"boost-study/{host}-{regime}"


def given_back(folder: Path) -> str:
    """Write the shares of the known pixels' luma and chroma that the host alone gives back, as ``inspect`` found."""
    file = folder / "inspect" / "inspect.json"
    found = json.loads(file.read_text(encoding="utf-8")).get("explained") if file.exists() else None
    if found is None:
        return NOT_MEASURED
    shares = (found["known"][part]["mean"][BARE] for part in PARTS)
    return ", ".join(NOT_MEASURED if share is None else f"{share:.2f}" for share in shares)


def speed(study: Study) -> str:
    """Write when the distilled host comes to the bare host's final score."""
    rows: list[Sequence[str]] = []
    for host, regime in study.run():
        seeds = study.cells[host, regime]["steps_to_bare"]
        shares = [each["ratio"] for each in seeds if each["ratio"] is not None]
        each = ", ".join("never" if seed["ratio"] is None else f"{seed['ratio']:.0%}" for seed in seeds)
        median = f"{statistics.median(shares):.0%}" if len(shares) == len(seeds) and shares else "-"
        rows.append((host, regime, f"{len(shares)} of {len(seeds)}", median, each))
    return table(("host", "regime", "seeds that reach it", "median of the steps", "seed by seed"), rows, 2)


def parts(study: Study) -> str:
    """Write what the block does without distillation, what distillation adds, and what another start does."""
    compared = {
        ("steps", BLOCK): "block alone",
        ("steps", WHOLE): "with distillation",
        ("block", WHOLE): "distillation minus block",
        ("steps", "interpolation_start"): "block starting at the interpolation",
    }
    return side_by_side(study, compared, ("block", WHOLE), BLOCK)


def control(study: Study) -> str:
    """Write what interpolated holes do alone, and what block and distillation do more."""
    compared = {
        ("steps", FILLED): "holes interpolated",
        ("filled", BLOCK): "block minus that",
        ("filled", WHOLE): "distillation minus that",
        ("filled_time", WHOLE): "the same, equal wall-clock",
    }
    return side_by_side(study, compared, ("steps", FILLED), FILLED)


def side_by_side(study: Study, compared: Mapping[tuple[str, str], str], needed: tuple[str, str], arm: str) -> str:
    """Write some differences in hole PSNR of each cell, and of the mean over the hosts.

    Args:
        study: The study.
        compared: Heads of the columns, by comparison and arm.
        needed: The one without which a cell is left out.
        arm: The arm whose step stands before that with distillation.
    """
    rows: list[Sequence[str]] = []
    for regime, host in itertools.product(study.regimes, (*study.hosts, None)):
        found = {key: study.row(host, regime, key[0], arm=key[1]) for key in compared}
        own = found[needed]
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


def filled(study: Study) -> str:
    """Write the hole PSNR of the hosts that were trained in both ways, with holes emptied and interpolated."""
    rows = []
    for host in study.hosts:
        found = [study.row(host, regime, "steps") for regime in ("small", "interpolated")]
        if None not in found:
            rows.append((host, *(value(row, key) for row in found for key in ("baseline_mean", "arm_mean"))))
    heads = [f"{hole}, {arm}" for hole in ("emptied", "interpolated") for arm in ("host alone", "with distillation")]
    return table(("host", *heads), rows, 1) if rows else f"{NOT_RUN.capitalize()}."


def repeat(study: Study, results: Path) -> str:
    """Write the command of each cell, and links to what lies of it."""
    rows = []
    for host, regime in study.run():
        cell, folder = study.cells[host, regime], folder_of(host, regime)
        links = [
            f"[{name}](results/{folder}/{file})" for name, file in FILES.items() if (results / folder / file).exists()
        ]
        seeds = f" --seeds {len(cell['seeds'])}" if "seeds" in cell["departures"] else ""
        rows.append((host, regime, f"`{COMMAND} --hosts {host} --regimes {regime}{seeds}`", ", ".join(links)))
    return table(("host", "regime", "command", "files"), rows, 4)


def short(study: Study) -> str:
    """Write the README's block: picture, findings, and a row per host of the regimes that several hosts have run.

    Of the first of them also what the block and interpolated holes do alone, at equal steps.
    """
    begun = [regime for regime in study.regimes if any(place[1] == regime for place in study.cells)]
    regimes = [regime for regime in begun if study.averaged(regime)] or begun
    columns = [(regime, key, WHOLE, label) for regime in regimes for key, label in COMPARISON_LABELS.items()]
    alone = {BLOCK: "block alone", FILLED: "interpolated holes alone"}
    columns += [(regimes[0], "steps", arm, label) for arm, label in alone.items() if regimes]
    rows = []
    for host in (*study.hosts, None):
        row = [host or "mean over hosts"]
        for regime, comparison, arm, _ in columns:
            found = study.row(host, regime, comparison, arm=arm)
            if host is None:
                every = len([each for each in study.hosts if (each, regime) in study.cells])
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
        f"{finding(study, regimes)}\n\nHost by host: differences on the test images with 95% intervals over the seeds, "
        "bold where they exclude zero. [docs/boost.md](docs/boost.md) has protocol, all metrics and limits."
    )
    head = ("host", *(f"{regime}, {label}" for regime, _, _, label in columns), "step")
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
    """Write the picture, the page and the README's block."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1], help="folder of README.md and docs")
    root = parser.parse_args(arguments).root
    results = root / "docs" / "results"
    study = Study(json.loads((results / "boost_study.json").read_text(encoding="utf-8")))
    forest(study, results / "boost_study.png")
    made = {
        write.__name__: write(study)
        for write in (headline, later, bins, lacking, metrics, speed, parts, control, filled)
    }
    made |= {write.__name__: write(study, results) for write in (training, repeat)}
    insert(root / "docs" / "boost.md", made)
    insert(root / "README.md", {"results": short(study)})


if __name__ == "__main__":
    main()
