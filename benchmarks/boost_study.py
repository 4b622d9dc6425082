"""Run the boost study of several hosts in several data regimes, cell by cell, and collect what lies there.

    python benchmarks/boost_study.py --data PHOTOS --masks MASKS --out STUDY [--hosts NAME ...] [--regimes NAME ...]

The protocol, ``boost_study.yaml``, names hosts and regimes. A cell is one host in one regime: a study of
``inpaint-distill boost`` in the folder ``STUDY/HOST-REGIME``. What is finished is not done again, so that the same
command goes on after Ctrl-C. With ``--together N``, N cells are trained at a time, to fill an accelerator or many
cores; what their steps cost is measured before, one cell after the other. After each cell, and with ``--collect``
without any training, there is written from what lies in ``STUDY``:

    HOST-REGIME/runs.jsonl   a line per finished run of the cell, with its curve, its scores and whether it is a trial
    boost_study.json         facts and comparisons of the cells, means over the hosts, and the cells not run yet
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from inpaint_distill.config import from_dict, load_yaml, to_dict
from inpaint_distill.errors import ConfigError, InpaintDistillError, near_names
from inpaint_distill.files import write_json, write_text
from inpaint_distill.training.ablation import (
    BARE,
    BLOCK,
    BLOCK_LONGER,
    CHANGES,
    FILLED,
    FILLED_LONGER,
    LONGER,
    WHOLE,
    WIDENED,
)
from inpaint_distill.training.boost import boost, measure_cost
from inpaint_distill.training.result import read_result
from inpaint_distill.training.settings import BoostSettings
from inpaint_distill.training.statistics import paired_interval

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

SCHEMA = 1
ABOUT = ("name", "regimes", "hosts", "photographs")  # what a protocol says of hosts and regimes beside their settings
HERE = ("data", "masks", "jobs", "device")  # settings that say where a cell is run, not what it is
# What a row compares: with the host alone, with the blocks alone, and with the host alone that has its holes
# interpolated, each at equal steps and at equal wall-clock, with a wider host, and changed distillation with the
# study's own.
COMPARED = {
    ("steps", BARE, WHOLE): "steps",
    ("time", LONGER, WHOLE): "time",
    ("time", FILLED_LONGER, WHOLE): "filled_time",
    ("time", BLOCK_LONGER, WHOLE): "block_time",
    ("steps", BARE, BLOCK): "steps",
    ("steps", BARE, FILLED): "steps",
    ("steps", BARE, WIDENED): "steps",
    **{("steps", WIDENED, name): "widened" for name in (BLOCK, WHOLE)},
    **{("steps", FILLED, name): "filled" for name in (BLOCK, WHOLE)},
    ("steps", BLOCK, WHOLE): "block",
    **{("steps", BARE, name): "steps" for name in CHANGES},
    **{("steps", BLOCK, name): "block" for name in CHANGES},
    **{("steps", WHOLE, name): "own" for name in CHANGES},
}
ROW = ("arm", "metric", "bin", "baseline_mean", "arm_mean", "mean", "low", "high", "pairs", "differences")
GROUP = ("regime", "arm", "comparison", "metric", "bin")  # of the rows that are averaged over the hosts


def hosts_of(protocol: Mapping[str, Any], regime: str) -> list[str]:
    """Return the hosts that a regime is for: those it names, or, where it names none, those that no other does."""
    named = {host for each in protocol["regimes"].values() for host in each.get("hosts", ())}
    own = protocol["regimes"][regime].get("hosts")
    return [each["name"] for each in protocol["hosts"] if (each["name"] in own if own else each["name"] not in named)]


def cell_settings(protocol: Mapping[str, Any], host: str, regime: str, **given: Any) -> BoostSettings:
    """Return the settings of a cell; what is given goes before the protocol."""
    own = next(each for each in protocol["hosts"] if each["name"] == host)
    values = {
        **protocol.get("settings", {}),
        **protocol["regimes"][regime],
        **own,
        **own.get("regimes", {}).get(regime, {}),
        **given,
    }
    return from_dict(BoostSettings, {key: value for key, value in values.items() if key not in ABOUT})


def train(settings: BoostSettings, folder: Path, console: Console) -> None:
    """Run a cell, or what is missing of it; one that is finished is left as it is."""
    if (folder / "report.html").exists():  # written last
        done = from_dict(BoostSettings, read_result(folder / "result.json")["settings"])
        if replace(done, jobs=settings.jobs) == settings:
            return
    boost(settings, folder, console, resume=True)


def train_together(plan: Sequence[tuple[str, str, BoostSettings]], out: Path, words: Sequence[str], count: int) -> int:
    """Run cells ``count`` at a time, each in a process that writes to ``OUT/HOST-REGIME.log``.

    Returns:
        0, or, once all have ended, the code of the first that failed.
    """
    for host, regime, settings in plan:
        measure_cost(settings, out / f"{host}-{regime}")

    def run(cell: tuple[str, str, BoostSettings]) -> int:
        host, regime, _ = cell
        one = ["--hosts", host, "--regimes", regime, "--part"]  # the last of an option counts
        with (out / f"{host}-{regime}.log").open("a", encoding="utf-8") as log:
            command = [sys.executable, str(Path(__file__).resolve()), *words, *one]
            return subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode

    with ThreadPoolExecutor(count) as pool:
        codes = list(pool.map(run, plan))
    if any(codes):
        failed = [f"{host}-{regime}" for (host, regime, _), code in zip(plan, codes, strict=True) if code]
        print(f"boost_study: {', '.join(failed)} did not finish: see the .log of each in {out}", file=sys.stderr)
    return next((code for code in codes if code), 0)


def finished_runs(folder: Path, host: str, regime: str) -> list[dict[str, Any]]:
    """Return the finished runs of a cell, trials among them, whether or not the cell is finished."""
    found = []
    for file in sorted((folder / "runs").glob("*-seed*-lr*.json")):
        run = json.loads(file.read_text(encoding="utf-8"))
        run.pop("channel_weights", None)
        found.append({"host": host, "regime": regime, "trial": file.name.startswith("trial-"), **run})
    return found


def cell(result: Mapping[str, Any], host: str, regime: str, wanted: BoostSettings) -> dict[str, Any]:
    """Return the facts of a finished cell.

    Args:
        result: Its ``result.json``.
        host: Its name in the protocol.
        regime: Its regime.
        wanted: What the protocol asks for; the settings that differ are told as ``departures``, [asked, found], those
            of the distillation by their dotted names.
    """
    settings = to_dict(from_dict(BoostSettings, result["settings"]))
    asked = to_dict(wanted)
    return {
        "host": host,
        "regime": regime,
        "created": result["created"],
        "settings": {key: value for key, value in settings.items() if key not in ("data", "masks", "jobs")},
        "departures": dict(differing(asked, settings)),
        "images": {key: result["data"][key] for key in ("source", "train", "val", "test")},
        "parameters": result["host"]["parameters"],
        "steps": settings["steps"],
        "lr": next(trial["lr"] for trial in result["tuning"] if trial["chosen"]),
        "fills": result.get("fills"),  # a result of before has none
        "tuning": result["tuning"],
        "cost_ratio": {arm: result["cost"]["ratio"][arm] for arm in settings["variants"]},
        "cost_ratio_active": {arm: result["cost"]["ratio_active"][arm] for arm in settings["variants"]},
        "seeds": settings["seeds"],
        "flatness": flatness(result["runs"]),
        "steps_to_bare": steps_to_bare(result["runs"]),
        "stuck": [{"arm": run["arm"], "seed": run["seed"]} for run in result["runs"] if run["stuck"]],
        "warnings": result["warnings"],
    }


def differing(asked: Mapping[str, Any], found: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, list[Any]]]:
    """Yield the settings that differ, by name, as [asked, found]."""
    for key, value in asked.items():
        other = found.get(key)
        if within or key not in HERE:
            if key == "distillation" or (within and isinstance(value, dict) and isinstance(other, dict)):
                yield from differing(value, other or {}, f"{within}{key}.")
            elif value != other:
                yield f"{within}{key}", [value, other]


def flatness(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Say how much the bare host still learns, in dB of hole PSNR on the validation images, as means over the seeds.

    ``last_fifth`` is the change over the last fifth of the training, from the last point of the curve before it;
    ``longer`` what the bare host gains when it is trained for the wall-clock of the distilled one.
    """
    bare, longer = (by_seed(runs, arm) for arm in (BARE, LONGER))
    changes = []
    for run in bare.values():
        before = [point for point in run["curve"] if point["step"] <= round(run["steps"] * 4 / 5)]
        if before:
            changes.append(final(run) - before[-1]["hole_psnr"])
    gains = [final(longer[seed]) - final(bare[seed]) for seed in bare if seed in longer]
    return {
        "last_fifth": statistics.fmean(changes) if changes else None,
        "last_fifth_by_seed": changes,
        "longer": statistics.fmean(gains) if gains else None,
        "longer_by_seed": gains,
        "longer_steps": next((run["steps"] for run in longer.values()), None),
    }


def steps_to_bare(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Say for each seed at which step of its curve the distilled host comes to the bare host's final hole PSNR.

    Both on the validation images; ``ratio`` is that step in parts of the bare host's steps, and both are ``None``
    where it never does.
    """
    bare, distilled = (by_seed(runs, arm) for arm in (BARE, WHOLE))
    found = []
    for seed in [seed for seed in bare if seed in distilled]:
        goal = final(bare[seed])
        step = next((point["step"] for point in distilled[seed]["curve"] if point["hole_psnr"] >= goal), None)
        found.append({"seed": seed, "step": step, "ratio": None if step is None else step / bare[seed]["steps"]})
    return found


def by_seed(runs: Iterable[Mapping[str, Any]], arm: str) -> dict[int, Mapping[str, Any]]:
    """Return the runs of an arm by their seed."""
    return {run["seed"]: run for run in runs if run["arm"] == arm}


def final(run: Mapping[str, Any]) -> float:
    """Return the hole PSNR on the validation images at the end of a run."""
    return float(run["curve"][-1]["hole_psnr"])


def compared(comparisons: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a cell on the test images, with what each compares.

    Interpolated holes do not apply to a host that does not read what stands in them: it has the very scores of the host
    alone then, which is no effect of 0 to be averaged with those of other hosts.
    """
    filled = [row["differences"] for row in comparisons if (row["baseline"], row["arm"]) == (BARE, FILLED)]
    left_out = set() if any(map(any, filled)) else {FILLED, FILLED_LONGER}
    for row in comparisons:
        comparison = COMPARED.get((row["comparison"], row["baseline"], row["arm"]))
        if row["split"] == "test" and comparison is not None and not left_out & {row["baseline"], row["arm"]}:
            yield {"comparison": comparison, **{key: number(row[key]) for key in ROW}}


def overall(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Average the hosts' mean differences, each host counted once, with Student's t over the hosts."""
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in GROUP), []).append(row)
    found = []
    for key, group in groups.items():
        interval = paired_interval([0.0] * len(group), [row["mean"] for row in group])
        names = dict(zip(GROUP, key, strict=True))
        bounds = {"mean": interval.mean, "low": number(interval.low), "high": number(interval.high)}
        found.append({**names, "hosts": [row["host"] for row in group], **bounds})
    return found


def number(value: Any) -> Any:
    """Return a value as JSON can hold it: the bounds of an interval from one pair are not numbers."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def collect(out: Path, protocol: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of ``boost_study.json``, of the cells that lie in a folder, and write their ``runs.jsonl``."""
    cells, rows, results, missing = [], [], [], []
    for regime in protocol["regimes"]:
        for host in hosts_of(protocol, regime):
            folder = out / f"{host}-{regime}"
            if (folder / "runs").is_dir():  # of a published cell there is the file alone
                lines = [json.dumps(run) for run in finished_runs(folder, host, regime)]
                write_text(folder / "runs.jsonl", "".join(f"{line}\n" for line in lines))
            if not (folder / "result.json").exists():
                missing.append({"host": host, "regime": regime})
                continue
            result = read_result(folder / "result.json")
            results.append(result)
            cells.append(cell(result, host, regime, cell_settings(protocol, host, regime)))
            rows += [{"host": host, "regime": regime, **row} for row in compared(result["comparisons"])]
    return {
        "schema": SCHEMA,
        "created": max((result["created"] for result in results), default=None),
        "versions": distinct(result["versions"] for result in results),
        "machine": distinct(result["machine"] for result in results),
        "protocol": dict(protocol),
        "cells": cells,
        "not_run": missing,
        "rows": rows,
        "overall": overall(rows),
    }


def distinct(values: Iterable[Any]) -> list[Any]:
    """Return the values that differ, in their order."""
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    return found


def chosen(names: Sequence[str] | None, options: Sequence[str], what: str) -> list[str]:
    """Return the names asked for, in their order, or all of the protocol's."""
    for name in names or ():
        if name not in options:
            raise ConfigError(f"{what} {name!r}", "the protocol has none of that name", near_names(name, options))
    return list(names or options)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cells asked for, regime by regime, and collect; return 0, 2 after an error, 130 after Ctrl-C.

    Of cells that run together, the code of the first that failed.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", help="folder of images (default: synthetic scenes)")
    parser.add_argument("--masks", help="folder of masks, white = hole (default: free-form masks)")
    parser.add_argument("--out", type=Path, required=True, metavar="STUDY", help="folder of the cells")
    parser.add_argument(
        "--hosts", nargs="+", metavar="NAME", help="hosts of the protocol, in this order (default: all)"
    )
    parser.add_argument("--regimes", nargs="+", metavar="NAME", help="its regimes, in this order (default: all)")
    parser.add_argument("--seeds", type=int, metavar="N", help="seeds 0 to N-1 instead of the protocol's")
    parser.add_argument("--protocol", type=Path, default=Path(__file__).with_suffix(".yaml"))
    parser.add_argument("--jobs", type=int, help="runs at a time (default: the cores; 1 on a device)")
    parser.add_argument("--together", type=int, default=1, metavar="N", help="cells at a time (default: 1)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="where to train (default: the protocol's)")
    parser.add_argument("--part", action="store_true", help=argparse.SUPPRESS)  # of a study whose cells run together
    parser.add_argument("--collect", action="store_true", help="train nothing, collect what lies in the folder")
    parsed = parser.parse_args(words)
    console = Console()
    try:
        protocol = load_yaml(parsed.protocol)
        hosts = chosen(parsed.hosts, [each["name"] for each in protocol["hosts"]], "host")
        regimes = chosen(parsed.regimes, list(protocol["regimes"]), "regime")
        given = {"data": parsed.data, "masks": parsed.masks, "jobs": parsed.jobs}
        if parsed.device is not None:
            given["device"] = parsed.device
        if parsed.seeds is not None:
            given["seeds"] = list(range(parsed.seeds))
        if not parsed.collect:
            places = [(host, regime) for regime in regimes for host in hosts if host in hosts_of(protocol, regime)]
            if not places:
                asked, found = f"{', '.join(hosts)} in {', '.join(regimes)}", "regimes that are for other hosts"
                raise ConfigError(asked, found, f"use {', '.join(hosts_of(protocol, regimes[0]))}")
            plan = [(*place, cell_settings(protocol, *place, **given)) for place in places]
            if parsed.together > 1 and not parsed.part:
                if code := train_together(plan, parsed.out, words, parsed.together):
                    return code
                plan = []
            for host, regime, settings in plan:
                console.rule(f"{host}, {regime}")
                train(settings, parsed.out / f"{host}-{regime}", console)
                if parsed.part:
                    return 0
                write_json(parsed.out / "boost_study.json", collect(parsed.out, protocol))
        parsed.out.mkdir(parents=True, exist_ok=True)
        study = collect(parsed.out, protocol)
        write_json(parsed.out / "boost_study.json", study)
    except InpaintDistillError as error:
        print(f"boost_study: {type(error).__name__}\n{error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        console.print("\nStopped; nothing is lost. The same command goes on.")
        return 130
    console.print(f"{len(study['cells'])} cells collected, {len(study['not_run'])} not run yet: {parsed.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
