"""The benchmarks on public hosts run, on one host of ours, and write what their page is made of."""

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(not (ROOT / "benchmarks").is_dir(), reason="needs the repository, not an installation")


def run(script, *arguments):
    command = [sys.executable, str(ROOT / "benchmarks" / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout


def test_discovery_and_training_are_measured_and_make_a_table(tmp_path):
    folder = tmp_path / "hosts"
    shutil.copy(ROOT / "docs" / "hosts.md", tmp_path)
    printed = run("discovery.py", "--only", "family unet", "--out", folder / "discovery.json")
    assert "chosen: right above the lowest: 1" in printed
    printed = run("hosts.py", "--only", "family unet", "--out", folder / "trials.json")
    assert "alone: 1 of 1 right" in printed
    assert "adapted: 1 of 1 right" in printed
    trial = json.loads((folder / "trials.json").read_text())["hosts"]["family unet"]
    assert trial["alone"]["host"][0] == trial["adapted"]["host"][0]
    assert all(norm > 0 for norm in trial["alone"]["gradient"].values())
    run("hosts_page.py", "--docs", tmp_path)
    (row,) = [line for line in (tmp_path / "hosts.md").read_text().splitlines() if line.startswith("| family")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[0] == "family unet"
    assert cells[2:5] == ["4/4", "the host's own call; adapter `unet`", "none"]
    assert cells[6] == "clean"


def test_costs_are_measured_and_make_a_table(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    cost = importlib.import_module("cost")
    monkeypatch.setattr(cost, "WIDTH", 4)
    results = tmp_path / "results"
    cost.main(["--only", "idle", "--rounds", "1", "--out", str(results / "cpu.json")])
    rows = {row["name"]: row for row in json.loads((results / "cpu.json").read_text())["rows"]}
    assert all(row["value"] > 0 for row in rows.values())
    detached = rows["after detach: forward / forward of a host never attached"]
    assert detached["note"].startswith("outputs identical")
    assert detached["holds"] == (detached["value"] <= detached["target"])
    shutil.copy(ROOT / "docs" / "performance.md", tmp_path)
    run("cost_page.py", "--docs", tmp_path, "--results", results)
    table = (tmp_path / "performance.md").read_text()
    assert all(f"| {name}" in table for name in rows)
    assert "not yet measured" in table
