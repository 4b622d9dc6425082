"""Write the table of docs/hosts.md from the JSON of discovery.py and hosts.py.

python benchmarks/hosts_page.py [--docs docs]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- table -->", "<!-- /table -->"
HEADER = "| host | version tried | discovery | replay | attention | trains | detaches |\n|---|---|---|---|---|---|---|"


def discovery(found: dict[str, Any]) -> str:
    """Say how many of the author's stages were picked."""
    if "error" in found:
        return found["error"].partition(":")[0]
    chosen = found["chosen"]
    lowest = "" if chosen["lowest"] else ", lowest elsewhere"
    runs = len(found["encoders"])
    return f"{chosen['above'] + chosen['lowest']}/{chosen['of'] + 1}{lowest}" + (
        f", encoder {found['encoder'] + 1} of {runs}" if runs > 1 else ""
    )


def replay(trial: dict[str, Any]) -> str:
    """Say whose call the teacher repeats."""
    words = "the host's own call" if "error" not in trial["alone"] else trial["alone"]["error"].partition(":")[0]
    return words + (f"; adapter `{trial['adapter']}`" if trial["adapter"] else "; no adapter")


def attention(found: dict[str, Any], trial: dict[str, Any]) -> str:
    """Say what was tapped, of what there is."""
    part = trial["alone"] if "error" not in trial["alone"] else trial.get("adapted", {})
    tapped, named = len(part.get("attention", ())), len(found.get("attention", {}).get("named", ()))
    if not named and not tapped:
        return "none"
    if not part:  # it did not come to that
        return f"{len(found['attention']['tapped'])} found"
    refused = part.get("refused", 0)
    # Of a family whose adapter leaves attention to discovery it is not said how many there are.
    return f"{tapped} tapped" + (f" of {named}" if named else "") + (f", {refused} refused" if refused else "")


def trains(trial: dict[str, Any]) -> str:
    """Give the losses of the first and the last step, without an adapter and with it."""
    cells = []
    for name in ("alone", "adapted"):
        part = trial.get(name)
        if part is None:
            continue
        if "error" in part:
            cells.append(f"{name}: {part['error'].partition(':')[0]}")
            continue
        reached = sum(norm > 0 for norm in part["gradient"].values())
        text = f"{part['host'][0]:.3f} to {part['host'][-1]:.3f}"
        text += "" if reached == len(part["gradient"]) else f", gradient at {reached} of {len(part['gradient'])} stages"
        cells.append(f"{name}: {text}" + ("" if part["look-ahead"] else ", without look-ahead"))
    return "; ".join(cells)


def detaches(trial: dict[str, Any]) -> str:
    """Say whether nothing was left behind."""
    parts = [trial[name] for name in ("alone", "adapted") if name in trial and "error" not in trial[name]]
    if not parts:
        return "not reached"
    return "clean" if all(part["detached"] for part in parts) else "**no**"


def main() -> None:
    """Rewrite the table between its markers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--docs", type=Path, default=Path(__file__).parents[1] / "docs")
    docs = parser.parse_args().docs
    found, trials = (
        json.loads((docs / "hosts" / f"{name}.json").read_text())["hosts"] for name in ("discovery", "trials")
    )
    rows = [HEADER]
    for name, trial in trials.items():
        each = found[name]
        cells = (
            name,
            trial["source"],
            discovery(each),
            replay(trial),
            attention(each, trial),
            trains(trial),
            detaches(trial),
        )
        rows.append(f"| {' | '.join(cells)} |")
    page = docs / "hosts.md"
    text = page.read_text(encoding="utf-8")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    table = "\n".join(rows)
    page.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
