"""Rows of a ``boost_study.json``, and how a difference is written; for ``boost_page.py``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from boost_study import hosts_of

from inpaint_distill.training.ablation import BLOCK, WHOLE
from inpaint_distill.training.masks import BIN_NAMES
from inpaint_distill.training.result import interval_of
from inpaint_distill.training.statistics import paired_interval, verdict
from inpaint_distill.training.tables import COMPARISON_LABELS, METRIC_FORMATS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from inpaint_distill.training.statistics import Interval

NOT_RUN, NOT_MEASURED = "not yet run", "not measured"
LONGER = "longer"
"""Comparison of the block alone with the host trained for the distilled one's wall-clock."""


class Study:
    """A ``boost_study.json`` with its rows by what they are about."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        protocol = content["protocol"]
        self.hosts = [each["name"] for each in protocol["hosts"]]
        self.regimes = list(protocol["regimes"])
        self.hosts_of = {regime: hosts_of(protocol, regime) for regime in self.regimes}
        self.photographs = {regime: each.get("photographs", "PHOTOS") for regime, each in protocol["regimes"].items()}
        self.pairs = len(protocol.get("settings", {}).get("seeds", ()))
        self.cells = {(each["host"], each["regime"]): each for each in content["cells"]}
        names = ("regime", "arm", "comparison", "metric", "bin")
        self.rows = {(row["host"], *(row[name] for name in names)): row for row in content["rows"]}
        self.means = {
            tuple(row[name] for name in names): {**row, "pairs": len(row["hosts"])} for row in content["overall"]
        }
        for regime in self.regimes:
            self._add_block_against_longer(regime)

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

    def _add_block_against_longer(self, regime: str) -> None:
        """Add what the block alone has more than the host trained for the distilled one's time, seed by seed.

        Of differences that are there: block minus host, less what the host gains by training longer.
        """
        key = (regime, BLOCK, LONGER, "hole_psnr", "all")
        found = []
        for host in self.hosts:
            rows = [
                self.row(host, regime, comparison, arm=arm)
                for comparison, arm in (("steps", BLOCK), ("steps", WHOLE), ("time", WHOLE))
            ]
            if None in rows or len({row["pairs"] for row in rows}) > 1:
                continue
            each = zip(*(row["differences"] for row in rows), strict=True)
            differences = [block - (steps - time) for block, steps, time in each]
            found.append(bounded(rows[0], paired_interval([0.0] * len(differences), differences)))
            self.rows[(host, *key)] = found[-1] | {"differences": differences}
        if len(found) > 1:
            over = paired_interval([0.0] * len(found), [row["mean"] for row in found])
            self.means[key] = bounded(found[0], over)

    def averaged(self, regime: str, comparison: str = "steps", *, arm: str = WHOLE) -> bool:
        """Tell whether there is a mean over more than half of a regime's hosts: few say nothing of the others."""
        row = self.row(None, regime, comparison, arm=arm)
        return row is not None and row["pairs"] > len(self.hosts_of[regime]) / 2


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


def between(row: Mapping[str, Any], interval: Interval) -> str:
    """Write another interval of a row's metric."""
    return difference(bounded(row, interval))


def bounded(row: Mapping[str, Any], interval: Interval) -> dict[str, Any]:
    """Return a row with another interval; of one pair it has no bounds."""
    low, high = (None if math.isnan(bound) else bound for bound in (interval.low, interval.high))
    return {**row, "pairs": interval.pairs, "mean": interval.mean, "low": low, "high": high}


def percent(interval: Interval) -> str:
    """Write an interval in percentage points, bold where it excludes zero."""
    text = f"{100 * interval.mean:+.0f}"
    if not math.isnan(interval.low):
        text += f" [{100 * interval.low:+.0f}, {100 * interval.high:+.0f}]"
    return text if verdict(interval) == "not shown" else f"**{text}**"


def large_holes(study: Study, host: str, regime: str, comparison: str) -> str:
    """Write what a cell's largest holes gain more than its smallest, seed by seed."""
    small, large = (study.row(host, regime, comparison, "hole_psnr", name) for name in (BIN_NAMES[0], BIN_NAMES[-1]))
    if small is None or large is None:
        return difference(None)
    return between(large, paired_interval(small["differences"], large["differences"]))


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


def folder_of(host: str, regime: str) -> str:
    """Return where the files of a cell lie, below the results."""
    return f"boost-study/{host}-{regime}"
