"""The tables of docs/boost_cells.md: each cell of the boost study by itself; for ``boost_page.py``."""

from __future__ import annotations

import itertools
import json
import re
import statistics
from typing import TYPE_CHECKING

from boost_rows import (
    NOT_MEASURED,
    NOT_RUN,
    by_column,
    folder_of,
    large_holes,
    percent,
    table,
)

from inpaint_distill.training.ablation import BARE
from inpaint_distill.training.explained import PARTS
from inpaint_distill.training.masks import BIN_NAMES
from inpaint_distill.training.statistics import paired_interval
from inpaint_distill.training.tables import COMPARISON_LABELS, METRIC_FORMATS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from boost_rows import Study

COMMAND = "python benchmarks/boost_study.py --data {photographs} --masks MASKS --out STUDY"
FILES = {
    "all metrics": "table.md",
    "JSON": "result.json",
    "runs": "runs.jsonl",
    "curves": "curves.png",
    "differences": "forest.png",
    "images": "panels.png",
    "features": "inspect/features.png",
}


def tables(study: Study, results: Path) -> dict[str, str]:
    """Write all of them, by the names of their marks on the page."""
    made = {write.__name__: write(study) for write in (bins, lacking, metrics, speed)}
    return made | {write.__name__: write(study, results) for write in (training, repeat)}


def bins(study: Study) -> str:
    """Write the differences in hole PSNR by hole ratio, and how much more the largest holes gain than the smallest."""
    names = ("all", *BIN_NAMES)
    heads = ["all", *(f"{name}%" for name in BIN_NAMES), f"{BIN_NAMES[-1]}% minus {BIN_NAMES[0]}%"]
    return by_column(study, [("hole_psnr", name) for name in names], heads, large_holes)


def lacking(study: Study) -> str:
    """Write the differences as shares of what a host lacks to the best one on the page, by hole ratio.

    Rows of the best one, of those that are scored on other photographs, and of one that lacks nothing in holes of some
    ratio are left out.
    """
    names = ("all", *BIN_NAMES)
    first = study.photographs[study.regimes[0]]
    places = [place for place in study.run() if study.photographs[place[1]] == first]
    scores = {place: row["arm_mean"] for place in places if (row := study.row(*place, "steps")) is not None}
    best = max(scores, key=lambda place: scores[place], default=("", ""))
    rows: list[Sequence[str]] = []
    for (host, regime), (comparison, label) in itertools.product(places, COMPARISON_LABELS.items()):
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
    head = f"The best is {best[0]} in `{best[1]}`, with block and distillation."
    return f"{head}\n\n{table(('host', 'regime', 'at', *heads), rows, 3)}"


def metrics(study: Study) -> str:
    """Write the differences in the other metrics over all holes."""
    others = [name for name in METRIC_FORMATS if name != "hole_psnr"]
    return by_column(study, [(name, "all") for name in others], [METRIC_FORMATS[name][0] for name in others])


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


def repeat(study: Study, results: Path) -> str:
    """Write the command of each cell, and links to what lies of it."""
    rows = []
    for host, regime in study.run():
        cell, folder = study.cells[host, regime], folder_of(host, regime)
        links = [
            f"[{name}](results/{folder}/{file})" for name, file in FILES.items() if (results / folder / file).exists()
        ]
        seeds = f" --seeds {len(cell['seeds'])}" if "seeds" in cell["departures"] else ""
        command = COMMAND.format(photographs=study.photographs[regime])
        rows.append((host, regime, f"`{command} --hosts {host} --regimes {regime}{seeds}`", ", ".join(links)))
    return table(("host", "regime", "command", "files"), rows, 4)
