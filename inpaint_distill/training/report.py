"""The result of a boost study for people: one self-contained HTML page, a Markdown table, a table on the terminal."""

from __future__ import annotations

import base64
import math
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from inpaint_distill.errors import StateError
from inpaint_distill.training.figures import ARM_LABELS, COMPARISON_LABELS
from inpaint_distill.training.statistics import Interval, sentence, verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from inpaint_distill.training.statistics import Verdict

__all__ = ["headlines", "markdown_table", "print_table", "write_report"]

SCHEMA = 1

_HOW_TO_READ = (
    "Mean over the test images and then over the seeds; intervals are Student-t over the paired seeds. They are not "
    "corrected for the number of rows: the sentences on top rest on one row each, hole PSNR over all holes. Coloured: "
    "the interval excludes zero."
)

# Name, number of decimals, factor that makes more better.
_METRICS = {
    "hole_psnr": ("hole PSNR (dB) ↑", 2, 1),
    "psnr": ("PSNR (dB) ↑", 2, 1),
    "ssim": ("SSIM ↑", 4, 1),
    "l1": ("L1 ↓", 4, -1),
}
_COLUMNS = ("host", "host + distillation", "difference [95%]", "pairs")
_CAPTIONS = {
    "curves": "Hole PSNR on the validation images. Thin lines: one seed each; thick lines: their mean.",
    "differences": "Host + distillation minus host, paired by seed. Grey: the interval includes zero.",
    "panels": "Test images. The hole is painted magenta in the input.",
}
_STYLE = """
:root { color-scheme: light dark; --ink: #1c1f23; --quiet: #5b6470; --paper: #ffffff; --line: #d9dee4; --band: #f4f6f8;
  --gain: #00629b; --loss: #b04a00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --quiet: #9aa4b0; --paper: #15181c; --line: #343a42;
  --band: #1e2329; --gain: #6fb7ea; --loss: #f0965a; } }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 60rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .5rem; }
p.quiet, figcaption, caption { color: var(--quiet); font-size: .9rem; } caption { text-align: left; padding: .3rem 0; }
.headline { font-size: 1.1rem; border-left: 4px solid var(--line); padding: .3rem 0 .3rem .9rem; }
.headline.gain { border-color: var(--gain); } .headline.loss { border-color: var(--loss); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; margin: .5rem 0; }
th, td { padding: .28rem .75rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { background: var(--band); font-weight: 600; }
th:first-child, td:first-child, .left th, .left td { text-align: left; }
.left td { white-space: normal; overflow-wrap: anywhere; }
tr.group td { border-top: 2px solid var(--line); }
td.gain { color: var(--gain); font-weight: 600; } td.loss { color: var(--loss); font-weight: 600; }
.warnings { border-left: 4px solid var(--loss); padding-left: 1.6rem; }
figure { margin: 1rem 0; } img { max-width: 100%; background: #fff; border-radius: 4px; }
code, pre { font: .85rem/1.5 ui-monospace, monospace; overflow-wrap: anywhere; white-space: pre-wrap; }
"""


def headlines(result: Mapping[str, Any]) -> list[tuple[Verdict, str]]:
    """Return verdict and sentence on the hole PSNR over all holes, for each comparison that was made."""
    found: list[tuple[Verdict, str]] = []
    for kind, label in COMPARISON_LABELS.items():
        for row in _rows(result, kind, ("hole_psnr",)):
            if row["bin"] == "all":
                interval = _interval(row)
                found.append((verdict(interval), sentence(interval, f"hole PSNR at {label}")))
    return found


def write_report(result: Mapping[str, Any], figures: Mapping[str, Path], folder: Path) -> Path:
    """Write ``report.html``: one file without scripts or links, readable on a light and on a dark screen.

    Args:
        result: What a boost study returned (the content of ``result.json``).
        figures: PNG files by name: ``curves``, ``differences``, ``panels``; embedded in the order given.
        folder: Where the page is written; created if missing.

    Raises:
        StateError: If the result has another schema than this version writes.
    """
    if result.get("schema") != SCHEMA:
        raise StateError(
            "a report of a boost result",
            f"schema {result.get('schema')!r}, this version reads {SCHEMA}",
            "use the version of inpaint-distill that wrote the result",
        )
    parts = [
        *_opening(result),
        *(_comparison_table(result, kind) for kind in COMPARISON_LABELS),
        f'<p class="quiet">{_HOW_TO_READ}</p>',
        *(_figure(name, Path(file)) for name, file in figures.items()),
        *_tables(result),
    ]
    title = f"Distillation on {escape(str(result['host']['name']))}"
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body>\n</html>\n"
    )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def markdown_table(result: Mapping[str, Any], metrics: Sequence[str] = ("hole_psnr",)) -> str:
    """Return the comparisons as a Markdown table, one row per comparison, metric and bin."""
    header = ("at", "metric", "holes", *_COLUMNS)
    lines = ["| " + " | ".join(header) + " |", "|---|---|---|--:|--:|--:|--:|"]
    for kind, label in COMPARISON_LABELS.items():
        lines += [
            "| " + " | ".join((label, _METRICS[row["metric"]][0], *_comparison_cells(row))) + " |"
            for row in _rows(result, kind, metrics)
        ]
    return "\n".join(lines) + "\n"


def print_table(
    result: Mapping[str, Any], metrics: Sequence[str] = ("hole_psnr",), console: Console | None = None
) -> None:
    """Print one table per comparison and metric, then the sentences that sum them up."""
    console = console or Console()
    for kind, label in COMPARISON_LABELS.items():
        for metric in metrics:
            rows = _rows(result, kind, (metric,))
            if not rows:
                continue
            title = Text(f"{result['host']['name']}, {label}: {_METRICS[metric][0]}")
            table = Table(title=title, title_justify="left")
            for name in ("holes", *_COLUMNS):
                table.add_column(Text(name), justify="left" if name == "holes" else "right", no_wrap=True)
            for row in rows:
                colour = {"gain": "green", "loss": "red"}.get(_outcome(row), "")
                *cells, difference, pairs = (Text(cell) for cell in _comparison_cells(row))
                difference.stylize(colour)
                table.add_row(*cells, difference, pairs)
            console.print(table)
    for _, text in headlines(result):
        console.print(Text(text), soft_wrap=True)


def _rows(result: Mapping[str, Any], kind: str, metrics: Iterable[str] = _METRICS) -> list[Mapping[str, Any]]:
    rows = [row for row in result["comparisons"] if row["comparison"] == kind]
    return [row for metric in metrics for row in rows if row["metric"] == metric]


def _interval(row: Mapping[str, Any]) -> Interval:
    low, high = (math.nan if row[bound] is None else row[bound] for bound in ("low", "high"))
    return Interval(row["mean"], low, high, row["pairs"])


def _outcome(row: Mapping[str, Any]) -> str:
    """Return the verdict with the direction of the metric taken into account."""
    interval, direction = _interval(row), _METRICS[row["metric"]][2]
    if direction < 0:
        interval = Interval(-interval.mean, -interval.high, -interval.low, interval.pairs)
    return verdict(interval)


def _comparison_cells(row: Mapping[str, Any]) -> tuple[str, str, str, str, str]:
    """Return holes, baseline mean, arm mean, difference with interval, pairs."""
    digits, interval = _METRICS[row["metric"]][1], _interval(row)
    difference = f"{interval.mean:+.{digits}f}"
    if math.isfinite(interval.low) and math.isfinite(interval.high):
        difference += f" [{interval.low:+.{digits}f}, {interval.high:+.{digits}f}]"
    holes = "all" if row["bin"] == "all" else f"{row['bin']}%"
    return holes, f"{row['baseline_mean']:.{digits}f}", f"{row['arm_mean']:.{digits}f}", difference, str(row["pairs"])


def _opening(result: Mapping[str, Any]) -> list[str]:
    data, host, settings, cost = result["data"], result["host"], result["settings"], result["cost"]
    facts = (
        f"{host['parameters']:,} parameters. {data['train']:,} training, {data['val']:,} validation and "
        f"{data['test']:,} test images ({data['source']}) at {settings['size']} pixels; {settings['steps']:,} steps; "
        f"seeds {', '.join(map(str, settings['seeds']))}. A step with distillation takes {cost['ratio']:.2f} times "
        f"a step without ({cost['distilled_step_seconds']:.3f} s against {cost['bare_step_seconds']:.3f} s)."
    )
    parts = [f'<p class="quiet">{escape(facts)}</p>']
    parts += [
        f'<p class="headline {"" if outcome == "not shown" else outcome}">{escape(text)}</p>'
        for outcome, text in headlines(result)
    ]
    if result["warnings"]:
        items = "".join(f"<li>{escape(str(text))}</li>" for text in result["warnings"])
        parts.append(f'<h2>Warnings</h2>\n<ul class="warnings">{items}</ul>')
    return parts


def _comparison_table(result: Mapping[str, Any], kind: str) -> str:
    rows = _rows(result, kind)
    if not rows:
        return ""
    body, metric = [], None
    for row in rows:
        holes, baseline, arm, difference, pairs = _comparison_cells(row)
        name = "" if row["metric"] == metric else _METRICS[row["metric"]][0]
        outcome = _outcome(row)
        mark = f' class="{outcome}"' if outcome != "not shown" else ""
        start = ' class="group"' if name else ""
        body.append(
            f"<tr{start}><td>{name}</td><td>{escape(holes)}</td><td>{baseline}</td><td>{arm}</td>"
            f"<td{mark}>{difference}</td><td>{pairs}</td></tr>"
        )
        metric = row["metric"]
    head = _cells("th", ("metric", "holes", *_COLUMNS))
    table = f'<div class="scroll"><table>\n<thead>{head}</thead>\n<tbody>{"".join(body)}</tbody>\n</table></div>'
    baseline = f'<p class="quiet">Compared with: {ARM_LABELS[rows[0]["baseline"]]}.</p>'
    return f"<h2>At {COMPARISON_LABELS[kind]}</h2>\n{baseline}\n{table}"


def _tables(result: Mapping[str, Any]) -> list[str]:
    """Return tuning, runs and provenance."""
    tuning = [
        (f"{row['lr']:g}", row["steps"], _number(row["val_hole_psnr"]), _tick(row["stuck"]), _tick(row["chosen"]))
        for row in result["tuning"]
    ]
    runs = [
        (
            ARM_LABELS.get(run["arm"], run["arm"]),
            *(run["seed"], run["steps"], f"{run['lr']:g}", f"{run['seconds']:.1f}", _tick(run["stuck"])),
            *(_number(run["scores"][metric].get("all"), digits) for metric, (_, digits, _) in _METRICS.items()),
        )
        for run in result["runs"]
    ]
    skipped = result["data"]["skipped"]
    return [
        _table("Tuning of the bare host", ("learning rate", "steps", "val hole PSNR (dB)", "stuck", "chosen"), tuning),
        _table(
            "Runs",
            ("arm", "seed", "steps", "learning rate", "seconds", "stuck", *(name for name, _, _ in _METRICS.values())),
            runs,
        ),
        _table("Settings", ("setting", "value"), _flat(result["settings"]), left=True),
        _table("Host", ("fact", "value"), _flat(result["host"]), left=True),
        _table(
            "Machine and versions", ("name", "value"), _flat({**result["machine"], **result["versions"]}), left=True
        ),
        _table("Files left out", ("file", "reason"), skipped[:50], left=True),
        f'<p class="quiet">and {len(skipped) - 50} more</p>' if len(skipped) > 50 else "",
        f"<h2>Command</h2>\n<pre>{escape(str(result['command']))}</pre>",
        f'<p class="quiet">{escape(str(result["created"]))}</p>',
    ]


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[Any]], left: bool = False) -> str:
    if not rows:
        return ""
    body = "".join(_cells("td", row) for row in rows)
    kind = ' class="left"' if left else ""
    return (
        f'<h2>{escape(title)}</h2>\n<div class="scroll"><table{kind}>\n<thead>{_cells("th", head)}</thead>\n'
        f"<tbody>{body}</tbody>\n</table></div>"
    )


def _cells(tag: str, values: Iterable[Any]) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(str(value))}</{tag}>" for value in values) + "</tr>"


def _figure(name: str, file: Path) -> str:
    caption = escape(_CAPTIONS.get(name, name))
    content = base64.b64encode(file.read_bytes()).decode("ascii")
    image = f'<img alt="{caption}" src="data:image/png;base64,{content}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def _flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Return nested settings as dotted names and values."""
    if isinstance(value, dict) and value:
        return [row for key, inner in value.items() for row in _flat(inner, f"{prefix}.{key}" if prefix else str(key))]
    return [(prefix, ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value))]


def _number(value: float | None, digits: int = 2) -> str:
    return "n/a" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def _tick(value: bool) -> str:
    return "yes" if value else ""
