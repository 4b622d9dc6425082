"""Every example in a docstring runs and shows what it says."""

import doctest
import importlib
from pathlib import Path

import pytest

import inpaint_distill
from inpaint_distill import adapters

FOLDERS = {"inpaint_distill": inpaint_distill, "inpaint_distill.adapters": adapters}


def modules():
    """Name every module by its file; a checkout's search path also holds the repository's other folders."""
    for prefix, package in FOLDERS.items():
        root = Path(package.__file__).parent
        for file in sorted(root.rglob("*.py")):
            parts = file.relative_to(root).with_suffix("").parts
            if parts[-1] != "__main__":
                yield ".".join((prefix, *(part for part in parts if part != "__init__")))


MODULES = sorted(set(modules()))


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_run(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0


def test_the_pure_functions_and_the_settings_show_examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    shown = {
        test.name.rpartition(".")[2]
        for name in ("inpaint_distill.losses.functional", "inpaint_distill.config", "inpaint_distill.errors")
        for test in finder.find(importlib.import_module(name))
        if test.examples
    }
    assert {"masked_distance", "to_dict", "from_dict", "near_names"} <= shown
