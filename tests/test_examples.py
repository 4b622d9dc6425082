"""Every example runs as it is, in a few seconds and without a file, and prints what its head says it prints."""

from __future__ import annotations

import ast
import re
import runpy
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path

import pytest

EXAMPLES = {path.stem: path for path in sorted((Path(__file__).parents[1] / "examples").glob("*.py"))}
NEEDS = {"ddp": "accelerate", "diffusers_unet": "diffusers", "two_lines": "segmentation_models_pytorch"}
MEASURED = re.compile(r"\d+\.\d+")


def run(name):
    runpy.run_path(str(EXAMPLES[name]), run_name="__main__")


def skip_without_package(name):
    if name in NEEDS and find_spec(NEEDS[name]) is None:
        pytest.skip(f"{NEEDS[name]} is not installed")


def check_against_head(name, printed):
    """Compare with the last block of the head, a copy of what a run printed: words exactly, figures roughly."""
    head = ast.get_docstring(ast.parse(EXAMPLES[name].read_text(encoding="utf-8")))
    promised = textwrap.dedent(head.split("\n\n")[-1])
    assert MEASURED.sub("#", printed.strip()) == MEASURED.sub("#", promised)
    # Training amplifies how another processor or release rounds.
    figures = [[float(figure) for figure in MEASURED.findall(text)] for text in (printed, promised)]
    assert figures[0] == pytest.approx(figures[1], rel=0.2, abs=0.02)


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name != "ddp"])
def test_an_example_prints_what_its_head_says(name, capsys):
    skip_without_package(name)
    run(name)
    check_against_head(name, capsys.readouterr().out)


TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc_per_node", "2")
# The launcher of several devices, also where there are none: the one for CPUs needs MPI.
ACCELERATE = ("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1")
ACCELERATE += ("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0")


@pytest.mark.parametrize("launch", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate"])
def test_two_processes_print_what_the_head_says_and_end_with_equal_hosts(launch):
    skip_without_package("ddp")
    command = [sys.executable, "-m", *launch, str(EXAMPLES["ddp"])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    check_against_head("ddp", done.stdout)
    first, second = re.findall(r"process \d: parameters (.*)", done.stdout)
    assert first == second


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_under_60_lines(name):
    assert len(EXAMPLES[name].read_text(encoding="utf-8").splitlines()) < 60


def test_without_diffusers_the_example_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(SystemExit, match="pip install diffusers"):
        run("diffusers_unet")
