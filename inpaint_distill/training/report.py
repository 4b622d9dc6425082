"""The result of a boost study for people: one self-contained HTML page."""

from __future__ import annotations

import base64
import math
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inpaint_distill.files import write_text
from inpaint_distill.training.ablation import ARM_LABELS, BARE, WHOLE
from inpaint_distill.training.evidence_table import HOW_TO_READ, table_head, table_rows
from inpaint_distill.training.perceptual import NETWORK_METRICS
from inpaint_distill.training.result import SCORES, made_contrasts, main_split, upgrade
from inpaint_distill.training.tables import (
    METRIC_FORMATS,
    SPLIT_LABELS,
    contrast_label,
    detail,
    detail_head,
    headlines,
    measured,
    overview,
    overview_head,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from inpaint_distill.training.ablation import Contrast
    from inpaint_distill.training.tables import Cell

__all__ = ["write_report"]

_OPEN_DETAILS = 2  # contrasts, up to which their tables are unfolded
_HOW_TO_READ = (
    "Differences of means over the images, averaged over the seeds; intervals are Student-t over the paired seeds. "
    "They are not corrected for the number of rows: each sentence on top rests on one row, hole PSNR over all holes. "
    "Coloured: the interval excludes zero. Step: cost of a training step in steps of the host alone."
)
_HOW_TO_READ_NETWORKS = (
    "LPIPS (AlexNet; images below 64 pixels are enlarged to 64) and FID (Inception v3) are measured at the end of a "
    "run and compare the arms of this study alone: FID grows as images become fewer."
)
_CAPTIONS = {
    "curves": "Hole PSNR on the validation images. Thick lines: mean of the seeds; thin lines: one seed each.",
    "differences": "Host + distillation minus host, paired by seed. Grey: the interval includes zero.",
    "forest": "Each arm minus its baseline, paired by seed, over all holes. Grey: the interval includes zero.",
    "panels": "Restored images. The hole is painted magenta in the input.",
    "features": "Energy of the features of one validation image, relative to its mean outside the hole (outlined).",
    "attention": "Attention of one hole pixel (cross), brighter for more.",
    "channel_weights": "Channel weights of the meta-networks over training; 1 / channels is uniform.",
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
summary { cursor: pointer; padding: .3rem 0; }
td.gain { color: var(--gain); font-weight: 600; } td.loss { color: var(--loss); font-weight: 600; }
.warnings { border-left: 4px solid var(--loss); padding-left: 1.6rem; }
figure { margin: 1rem 0; } img { max-width: 100%; background: #fff; border-radius: 4px; }
code, pre { font: .85rem/1.5 ui-monospace, monospace; overflow-wrap: anywhere; white-space: pre-wrap; }
"""


def write_report(
    result: Mapping[str, Any], figures: Mapping[str, Path], folder: Path, evidence: Mapping[str, Any] | None = None
) -> Path:
    """Write ``report.html``: one file without scripts or links, readable on a light and on a dark screen.

    Args:
        result: What a boost study returned (the content of ``result.json``).
        figures: PNG files by name; embedded in the order given.
        folder: Where the page is written; created if missing.
        evidence: What an inspection of the study found (the content of ``inspect.json``).

    Raises:
        StateError: If the result has a schema that this version does not know.
    """
    result = upgrade(result)
    made = made_contrasts(result)
    parts = [
        *_opening(result),
        *(_overview(result, split) for split in SPLIT_LABELS),
        f'<p class="quiet">{_how_to_read(result)}</p>',
        *(_figure(name, Path(file)) for name, file in figures.items()),
        f"<h2>By hole ratio, {SPLIT_LABELS[main_split(result)]}</h2>" if made else "",
        *(_detail(result, contrast, unfolded=len(made) <= _OPEN_DETAILS) for contrast in made),
        _evidence(evidence) if evidence else "",
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
    write_text(path, page)
    return path


def _opening(result: Mapping[str, Any]) -> list[str]:
    data, host, settings, cost = result["data"], result["host"], result["settings"], result["cost"]
    seconds = cost["step_seconds"]
    facts = (
        f"{host['parameters']:,} parameters. {data['train']:,} training, {data['val']:,} validation and "
        f"{data['test']:,} test images ({data['source']}) at {settings['size']} pixels; {settings['steps']:,} steps; "
        f"seeds {', '.join(map(str, settings['seeds']))}. A step of the host alone takes {seconds[BARE]:.3f} s."
    )
    if settings.get("pretrain_steps"):  # a result of before has none
        facts += f" Every arm starts from a host trained alone for {settings['pretrain_steps']:,} steps before."
    if start := host.get("start"):
        facts += f" Every arm starts from {start['file']}, which has {start['hole_psnr']:.2f} dB hole PSNR."
    if WHOLE in seconds:
        facts += f" One with distillation takes {cost['ratio'][WHOLE]:.2f} times as long ({seconds[WHOLE]:.3f} s)."
    if fills := result.get("fills"):  # a result of before has none
        facts += (
            f" Without a network: interpolation of the holes has {fills['interpolation']:.2f} dB hole PSNR, one colour "
            f"{fills['one_colour']:.2f} dB."
        )
    if main_split(result) == "val":
        facts += " The test images were not scored."
    parts = [f'<p class="quiet">{escape(facts)}</p>']
    parts += [
        f'<p class="headline {"" if outcome == "not shown" else outcome}">{escape(text)}</p>'
        for outcome, text in headlines(result)
    ]
    if result["warnings"]:
        items = "".join(f"<li>{escape(str(text))}</li>" for text in result["warnings"])
        parts.append(f'<h2>Warnings</h2>\n<ul class="warnings">{items}</ul>')
    return parts


def _how_to_read(result: Mapping[str, Any]) -> str:
    networks = set(NETWORK_METRICS) & set(measured(result, main_split(result)))
    return f"{_HOW_TO_READ} {_HOW_TO_READ_NETWORKS}" if networks else _HOW_TO_READ


def _overview(result: Mapping[str, Any], split: str) -> str:
    metrics = measured(result, split)
    rows = overview(result, split, metrics)
    if not rows:
        return ""
    body = "".join(f"<tr>{_marked(row)}</tr>" for row in rows)
    return f"<h2>On the {SPLIT_LABELS[split]}</h2>\n{_scrolled(overview_head(metrics), body)}"


def _detail(result: Mapping[str, Any], contrast: Contrast, *, unfolded: bool) -> str:
    body, last = [], None
    for metric, cells in detail(result, main_split(result), contrast):
        start, name = ("", "") if metric == last else (' class="group"', METRIC_FORMATS[metric][0])
        body.append(f"<tr{start}><td>{name}</td>{_marked(cells)}</tr>")
        last = metric
    table = _scrolled(("metric", "holes", *detail_head(contrast)), "".join(body))
    summary = f"<summary>{escape(contrast_label(contrast))}</summary>"
    return f"<details{' open' if unfolded else ''}>{summary}\n{table}</details>"


def _evidence(evidence: Mapping[str, Any]) -> str:
    """Return the table of an inspection, and how to read it."""
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in table_rows(evidence))
    note = f'<p class="quiet">{escape(HOW_TO_READ)}</p>'
    return f"<h2>What the features show</h2>\n{_scrolled(table_head(evidence), body)}\n{note}"


def _marked(cells: Iterable[Cell]) -> str:
    """Return cells coloured by what they show."""
    marks = {"gain": ' class="gain"', "loss": ' class="loss"'}
    return "".join(f"<td{marks.get(cell.outcome, '')}>{escape(cell.text)}</td>" for cell in cells)


def _scrolled(head: Iterable[str], body: str, kind: str = "") -> str:
    heads = _cells("th", head)
    return f'<div class="scroll"><table{kind}>\n<thead>{heads}</thead>\n<tbody>{body}</tbody>\n</table></div>'


def _tables(result: Mapping[str, Any]) -> list[str]:
    """Return tuning, runs and provenance."""
    tuning = [
        (f"{row['lr']:g}", row["steps"], _number(row["val_hole_psnr"]), _tick(row["stuck"]), _tick(row["chosen"]))
        for row in result["tuning"]
    ]
    split = main_split(result)
    scores, formats = SCORES[split], {metric: METRIC_FORMATS[metric] for metric in measured(result, split)}
    runs = [
        (
            ARM_LABELS.get(run["arm"], run["arm"]),
            *(run["seed"], run["steps"], f"{run['lr']:g}", f"{run['seconds']:.1f}", _tick(run["stuck"])),
            *(_number(run[scores].get(metric, {}).get("all"), digits) for metric, (_, digits, _) in formats.items()),
        )
        for run in result["runs"]
    ]
    skipped = result["data"]["skipped"]
    return [
        _table("Tuning of the bare host", ("learning rate", "steps", "val hole PSNR (dB)", "stuck", "chosen"), tuning),
        _table(
            f"Runs, on the {SPLIT_LABELS[split]}",
            ("arm", "seed", "steps", "learning rate", "seconds", "stuck", *(name for name, _, _ in formats.values())),
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
    return f"<h2>{escape(title)}</h2>\n{_scrolled(head, body, kind)}"


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
