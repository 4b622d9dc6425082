"""Train what published cells of the boost study lack of their protocol, and nothing that they have.

    python benchmarks/boost_add.py STUDY --data PHOTOS --masks MASKS --hosts NAME ... --regimes NAME ...

For an arm or a seed that the protocol was given later. A published cell has its scores and no weights: its runs, its
learning rate and the cost of its steps are taken as they are, what is missing is trained in ``STUDY/HOST-REGIME``, on
the same images and masks, and its result, tables and figures of differences are written anew, with ``added`` saying
what came when. The panels and the features stay: they show arms that were there. Ctrl-C loses nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boost_publish
import boost_study
from rich.console import Console
from rich.progress import Progress

from inpaint_distill.config import from_dict, load_yaml, to_dict
from inpaint_distill.errors import InpaintDistillError, StateError
from inpaint_distill.files import read_json, write_json, write_text
from inpaint_distill.training.ablation import BARE
from inpaint_distill.training.boost import planned
from inpaint_distill.training.cost import step_cost
from inpaint_distill.training.data import load_data
from inpaint_distill.training.figures import curves, forest
from inpaint_distill.training.lock import locked
from inpaint_distill.training.pool import Pool
from inpaint_distill.training.result import assemble, read_result
from inpaint_distill.training.settings import BoostSettings
from inpaint_distill.training.tables import METRIC_FORMATS, markdown_overview, markdown_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inpaint_distill.training.data import StudyData

ADDED = {"variants", "widened_options", "seeds"}  # what a cell may be given more of
KEPT = ("command", "created", "versions", "machine")  # of the training that the cell was first published with


def add(settings: BoostSettings, cell: Path, folder: Path, console: Console) -> int:
    """Train what a published cell lacks.

    Args:
        settings: What the protocol asks for.
        cell: The published cell.
        folder: Where to train.
        console: Where progress is shown.

    Returns:
        The number of runs that were added.

    Raises:
        StateError: The cell is of other settings, images or masks, or starts from hosts whose weights it has not.
    """
    before = read_result(cell / "result.json")
    found = to_dict(from_dict(BoostSettings, before["settings"]))
    departs = dict(boost_study.differing(to_dict(settings), found))
    if others := departs.keys() - ADDED:
        changed = ", ".join(f"{name} = {departs[name][1]} (now {departs[name][0]})" for name in sorted(others))
        raise StateError(f"to add to {cell}", f"it was trained with {changed}", "train it anew by boost_study.py")
    if settings.pretrain_steps is not None:
        raise StateError(f"to add to {cell}", "a cell without the hosts it starts from", "train it by boost_study.py")
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    with locked(folder):
        data = load_data(settings)
        if before["data"].get("sha256", data.checksum()) != data.checksum():  # the first cells have none
            raise StateError(f"to add to {cell}", "other images or masks", "give those it was trained on")
        cost = whole_cost(settings, data, before["cost"], folder / "cost.json")
        lr = next(trial["lr"] for trial in before["tuning"] if trial["chosen"])
        plan = planned(settings, lr, cost["ratio"])
        there = {(run["arm"], run["seed"]): run for run in before["runs"]}
        missing = [run for run in plan if (run.arm, run.seed) not in there]
        if not missing:
            return 0
        with Progress(console=console) as progress, Pool(settings, data, folder / "runs", progress) as pool:
            added = pool.train(missing, "train")
    there |= {(run["arm"], run["seed"]): run for run in added}
    asked = [there.pop((run.arm, run.seed)) for run in plan]
    runs = [*asked, *there.values()]  # arms that the protocol has no more stay
    made = assemble(settings, data, before["host"], before["tuning"], cost, runs, before["fills"])
    note = {"runs": [run.name for run in missing], **{key: made[key] for key in KEPT}}
    result = {**made, **{key: before[key] for key in KEPT}, "added": [*before.get("added", ()), note]}
    write_json(cell / "result.json", result)
    file = cell / "runs.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines()
    place = {key: json.loads(lines[0])[key] for key in ("host", "regime")}
    new = {(run.arm, run.seed) for run in missing}
    of_new = (run for run in result["runs"] if (run["arm"], run["seed"]) in new)
    lines += [json.dumps({**place, "trial": False, **run}) for run in of_new]
    write_text(file, "".join(f"{line}\n" for line in lines))
    write_text(cell / "table.md", f"{markdown_overview(result)}\n{markdown_table(result, tuple(METRIC_FORMATS))}")
    forest(result, cell / "forest.png")
    curves(result, cell / "curves.png")
    return len(missing)


def whole_cost(settings: BoostSettings, data: StudyData, before: dict[str, Any], file: Path) -> dict[str, Any]:
    """Return the cost of a step of each arm; of those that the cell has not, measured now beside the host alone."""
    lacking = tuple(arm for arm in settings.variants if arm not in before["ratio"])
    if not lacking:
        return before
    if not file.exists():
        write_json(file, step_cost(replace(settings, variants=lacking), data, settings.lrs[0]))
    now = read_json(file, "the cost of a step", "delete it: it is measured again")
    # The machine may be another, or busier: seconds as they would have been then.
    scale = before["step_seconds"][BARE] / now["step_seconds"][BARE]
    seconds = {arm: now["step_seconds"][arm] * scale for arm in lacking}
    found = {"step_seconds": {**before["step_seconds"], **seconds}}
    return before | found | {key: {**now[key], **before[key]} for key in ("ratio", "ratio_active", "ratio_faded")}


def main(arguments: Sequence[str] | None = None) -> int:
    """Add to the published cells asked for and write the pages; return 0, 2 after an error, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("study", type=Path, metavar="STUDY", help="folder to train in")
    parser.add_argument("--data", help="folder of images (default: synthetic scenes)")
    parser.add_argument("--masks", help="folder of masks, white = hole (default: free-form masks)")
    parser.add_argument("--hosts", nargs="+", metavar="NAME", required=True, help="hosts of the protocol")
    parser.add_argument("--regimes", nargs="+", metavar="NAME", required=True, help="its regimes")
    parser.add_argument("--jobs", type=int, help="runs at a time (default: the cores)")
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1], help="folder of README.md and docs")
    parser.add_argument("--protocol", type=Path, default=boost_publish.PROTOCOL)
    parsed = parser.parse_args(arguments)
    console = Console()
    published = parsed.root / "docs" / "results" / "boost-study"
    try:
        protocol = load_yaml(parsed.protocol)
        hosts = boost_study.chosen(parsed.hosts, [each["name"] for each in protocol["hosts"]], "host")
        for regime in boost_study.chosen(parsed.regimes, list(protocol["regimes"]), "regime"):
            for host in hosts:
                name = f"{host}-{regime}"
                if not (published / name / "result.json").exists():
                    raise StateError(f"to add to the cell {name}", f"none in {published}", "train it by boost_study.py")
                given = {"data": parsed.data, "masks": parsed.masks, "jobs": parsed.jobs}
                settings = boost_study.cell_settings(protocol, host, regime, **given)
                console.rule(name)
                count = add(settings, published / name, parsed.study / name, console)
                console.print(f"{count} runs added")
                boost_publish.write_pages(parsed.root, protocol)
    except InpaintDistillError as error:
        print(f"boost_add: {type(error).__name__}\n{error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        console.print("\nStopped; nothing is lost. The same command goes on.")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
