"""Write the table and the plot of docs/performance.md from the JSON of cost.py.

python benchmarks/cost_page.py [--results benchmarks/results] [--docs docs]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from hosts_page import BEGIN, END
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FixedLocator, FormatStrFormatter, NullLocator

ROOT = Path(__file__).parents[1]
HEADER = "| what | measured | floor | to reach | reached |\n|---|---|---|---|---|"


def line(row: dict[str, Any]) -> str:
    """Return a row of the table."""
    target = "" if row["target"] is None else f"{'≥' if row['at_least'] else '≤'} {row['target']:.3g}"
    floor = "" if row["floor"] is None else f"{row['floor']:.3g}"
    reached = {True: "yes", False: "**no**", None: ""}[row["holds"]]
    note = f" ({row['note']})" if row["note"] else ""
    return f"| {row['name']}{note} | {row['value']:.3g} | {floor} | {target} | {reached} |"


def table(results: Path) -> str:
    """Return the tables of every machine that was measured."""
    parts = []
    for name, title in (("cpu", "CPU"), ("h200", "H200, bf16")):
        file = results / f"{name}.json"
        if not file.exists():
            parts.append(f"**{title}**: not yet measured.")
            continue
        report = json.loads(file.read_text(encoding="utf-8"))
        settings = ", ".join(f"{key} {value}" for key, value in report["settings"].items())
        parts.append(f"**{title}**: {settings}.\n\n" + "\n".join([HEADER, *map(line, report["rows"])]))
    return "\n\n".join(parts)


def plot(rows: list[dict[str, Any]], file: Path) -> None:
    """Draw what is added to a step against what grows, with the fitted power."""
    grown = [row for row in rows if row["points"]]
    figure = Figure(figsize=(4 * len(grown), 3.2), layout="constrained")
    for axes, row in zip(figure.subplots(1, len(grown), squeeze=False)[0], grown, strict=True):
        x = [int(each) for each in row["points"]]
        y = [1000 * each for each in row["points"].values()]
        axes.loglog(x, y, "o-", label=f"measured, exponent {row['value']:.2f}")
        axes.loglog(x, [y[0] * each / x[0] for each in x], "--", color="0.6", label="linear")
        for axis, ticks in ((axes.xaxis, x), (axes.yaxis, y)):
            axis.set_minor_locator(NullLocator())
            axis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.yaxis.set_major_formatter(FormatStrFormatter("%.0f"))
        axes.set_xlabel(row["name"].removeprefix("growth with ").partition(":")[0])
        axes.set_ylabel("ms")
        axes.set_title(row["note"], fontsize=8)
        axes.legend(fontsize=7)
    figure.savefig(file, dpi=120)


def main() -> None:
    """Rewrite the part between the markers, and the plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    given = parser.parse_args()
    page = given.docs / "performance.md"
    text = page.read_text(encoding="utf-8")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n{table(given.results)}\n{END}{after}", encoding="utf-8")
    rows = json.loads((given.results / "cpu.json").read_text(encoding="utf-8"))["rows"]
    if any(row["points"] for row in rows):
        plot(rows, given.docs / "results" / "cost_growth.png")


if __name__ == "__main__":
    main()
