"""Finding an adapter by name, by host and by entry point."""

from __future__ import annotations

import doctest
import importlib.metadata
import subprocess
import sys

import pytest
import torch
from torch import nn

from inpaint_distill import adapters
from inpaint_distill.errors import ConfigError
from inpaint_distill.host.adapter import Adapter


class PluginAdapter(Adapter):
    name = "plugin"

    def matches(self, host):
        return isinstance(host, nn.Bilinear)


class ImpostorAdapter(Adapter):
    name = "unet"


@pytest.fixture
def register(monkeypatch):
    """Return a function that makes the named attribute of this module the only entry point of the group."""

    def add(attribute):
        entry = importlib.metadata.EntryPoint("mine", f"{__name__}:{attribute}", adapters.ENTRY_POINT_GROUP)
        monkeypatch.setattr(
            importlib.metadata, "entry_points", lambda *, group: [entry] if group == entry.group else []
        )

    return add


def test_an_unknown_name_is_answered_with_near_names():
    with pytest.raises(ConfigError, match="gated-conv") as caught:
        adapters.get("gatedconv")
    assert "gatedconv" in caught.value.asked


def test_find_returns_none_for_a_stranger_and_for_a_host_inside_another_module():
    assert adapters.find(nn.Linear(1, 1)) is None
    assert adapters.find(nn.Sequential(adapters.get("partial-conv").build(width=4))) is None


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, lambda host: torch.compile(nn.DataParallel(host))])
def test_find_looks_into_what_is_put_around_a_host_to_train_it(wrap):
    assert adapters.find(wrap(adapters.get("partial-conv").build(width=4))).name == "partial-conv"


def test_a_class_that_only_shares_the_name_is_a_stranger():
    lookalike = type("GatedConvGenerator", (nn.Module,), {})()
    assert adapters.find(lookalike) is None


def test_an_entry_point_adds_a_family_behind_the_built_in_ones(register):
    register("PluginAdapter")
    assert list(adapters.families())[-1] == "plugin"
    assert isinstance(adapters.get("plugin"), PluginAdapter)
    assert isinstance(adapters.find(nn.Bilinear(1, 1, 1)), PluginAdapter)


@pytest.mark.parametrize(
    ("attribute", "found"),
    [("ImpostorAdapter", "another adapter"), ("Missing", "AttributeError"), ("torch", "module 'torch'")],
)
def test_a_bad_entry_point_is_named(register, attribute, found):
    register(attribute)
    assert torch
    with pytest.raises(ConfigError, match=found) as caught:
        adapters.families()
    assert f"mine = {__name__}:{attribute}" in caught.value.asked


def test_importing_the_registry_loads_no_family():
    program = (
        "import sys, inpaint_distill.adapters\n"
        "loaded = [n for n in sys.modules if n.startswith('inpaint_distill.adapters.') or n.split('.')[0] == 'timm']\n"
        "sys.exit(', '.join(loaded) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_examples_in_the_docstring_run():
    assert doctest.testmod(adapters).failed == 0
