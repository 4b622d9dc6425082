"""Public implementations are known by their class name and sub-modules, rebuilt here from nothing but these."""

from __future__ import annotations

import pytest
from torch import nn

from inpaint_distill import adapters

FAMILIES = ["gated-conv", "contextual-attention", "partial-conv", "edge-connect", "aot-gan"]
VARIANTS = [
    pytest.param(name, variant, id=f"{name}-{variant.source}")
    for name in FAMILIES
    for variant in adapters.get(name).variants
]


def stand_in(variant):
    """Return a module tree that has the variant's class name and sub-modules, and nothing else."""
    root = type(variant.kind, (nn.Module,), {})()
    for path in variant.has:
        module = root
        for name in path.split("."):
            if name not in module._modules:
                module.add_module(name, nn.Module())
            module = module.get_submodule(name)
    return root


def without(host, path):
    """Take one sub-module out of a stand-in."""
    parent, _, name = path.rpartition(".")
    del host.get_submodule(parent)._modules[name]
    return host


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_is_known_by_its_class_name_and_sub_modules(name, variant):
    host = stand_in(variant)
    assert [family for family, adapter in adapters.families().items() if adapter.matches(host)] == [name]
    assert adapters.find(host).variant(host) is variant


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_is_a_stranger_without_any_one_of_them(name, variant):
    for path in variant.has:
        assert adapters.find(without(stand_in(variant), path)) is None


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_is_a_stranger_under_another_name(name, variant):
    host = stand_in(variant)
    type(host).__name__ = "Net"
    assert adapters.find(host) is None


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_is_known_when_derived_from(name, variant):
    host = stand_in(variant)
    host.__class__ = type("MyNet", (type(host),), {})
    assert adapters.get(name).variant(host) is variant


@pytest.mark.parametrize("name", FAMILIES)
def test_a_host_of_ours_is_known_as_ours(name):
    adapter = adapters.get(name)
    assert adapter.variant(adapter.build(width=4)).source == "inpaint_distill"
