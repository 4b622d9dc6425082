from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_and_leaves_nothing_on_the_host(path, capsys):
    runpy.run_path(str(path))["main"](steps=3)
    assert "hooks left: 0" in capsys.readouterr().out
    assert len(path.read_text().splitlines()) <= 60
