"""Mutation testing of ``losses/``, ``host/`` and ``lookahead/``: which changed lines do the tests notice?

    pip install mutmut==3.8.1
    python benchmarks/mutation.py --mutants 600 --seed 1 --out benchmarks/results/mutation.json

mutmut changes one operator, constant, argument or name at a time and runs the tests that reach the function.
There are thousands of mutants, so a seeded sample of all of them is run; every survivor is written to the file with
its change. A mutant that no test reaches counts as a survivor. The settings stand in pyproject.toml, ``[tool.mutmut]``.
It runs in the repository (mutmut's own folder is ``mutants/``; ``--fresh`` deletes it first).
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "mutants"


def main(argv: list[str] | None = None) -> None:
    """Draw the sample, run it, and write what survived."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=int, default=600, help="size of the sample")
    parser.add_argument("--seed", type=int, default=1, help="seed of the sample")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--fresh", action="store_true", help="forget all earlier results")
    given = parser.parse_args(argv)
    if given.fresh:
        shutil.rmtree(FOLDER, ignore_errors=True)
    mutmut("run", "*none*", check=False)  # makes the mutants, and then finds no such name
    names = sorted(verdicts())
    if not names:
        raise SystemExit(f"mutmut made no mutants in {FOLDER}; run `mutmut run` there to see why")
    sample = sorted(random.Random(given.seed).sample(names, min(given.mutants, len(names))))
    mutmut("run", *sample)
    found = {name: verdict for name, verdict in verdicts().items() if name in set(sample)}
    rooms: dict[str, Counter[str]] = defaultdict(Counter)
    for name, verdict in found.items():
        rooms[name.split(".")[1]][verdict] += 1
        rooms["all"][verdict] += 1
    report = {
        "seed": given.seed,
        "mutants": len(names),
        "sample": len(sample),
        "commit": output("git", "rev-parse", "HEAD").strip(),
        "versions": {name: version(name) for name in ("mutmut", "torch", "pytest", "hypothesis")},
        "rooms": {room: {**counts, "share killed": score(counts)} for room, counts in sorted(rooms.items())},
        "survivors": {name: change(name) for name, verdict in sorted(found.items()) if verdict != "killed"},
    }
    for room, counts in report["rooms"].items():
        print(room, counts)
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(report, indent=1) + "\n")


def mutmut(*arguments: str, check: bool = True) -> None:
    """Run mutmut in the repository; its progress is not shown."""
    done = subprocess.run([sys.executable, "-m", "mutmut", *arguments], cwd=ROOT, capture_output=True, text=True)
    if check and done.returncode:
        raise SystemExit(done.stdout[-2000:] + done.stderr[-2000:])


def verdicts() -> dict[str, str]:
    """Return the state of every mutant by name: killed, survived, no tests, timeout, or not run."""
    states = {None: "not run", 0: "survived", 33: "no tests", 36: "timeout"}
    found: dict[str, str] = {}
    for file in FOLDER.glob("inpaint_distill/**/*.meta"):
        codes = json.loads(file.read_text())["exit_code_by_key"]
        found |= {name: states.get(code, "killed") for name, code in codes.items()}
    return found


def score(counts: Counter[str]) -> float:
    """Return the share of the mutants that the tests noticed; one that never ends is noticed."""
    return round((counts["killed"] + counts["timeout"]) / sum(counts.values()), 3)


def change(name: str) -> str:
    """Return the changed lines of a mutant."""
    lines = output(sys.executable, "-m", "mutmut", "show", name).splitlines()
    return "\n".join(line for line in lines if line[:1] in "+-" and line[:3] not in ("+++", "---"))


def output(*command: str) -> str:
    """Return what a command prints."""
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    main()
