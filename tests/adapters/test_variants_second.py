"""Implementations are known by the class name and sub-modules that their variant states, and by all of them."""

from __future__ import annotations

import pytest
from torch import nn

from inpaint_distill import adapters

FAMILIES = ("lama", "rfr", "ctsdg", "mi-gan", "mat")
VARIANTS = [(name, variant) for name in FAMILIES for variant in adapters.get(name).variants]
IDS = [f"{name}-{variant.source}" for name, variant in VARIANTS]


def stand_in(kind, names):
    """Build a tree of empty modules of a class called ``kind`` that has the names, and what they hang on."""
    root = type(kind, (nn.Module,), {})()
    for name in names:
        module = root
        for part in name.split("."):
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module._modules[part]
    return root


@pytest.mark.parametrize(("name", "variant"), VARIANTS, ids=IDS)
def test_class_and_names_are_recognised(name, variant):
    host = stand_in(variant.kind, variant.has)
    assert adapters.find(host).name == name
    assert adapters.get(name).variant(host) is variant


@pytest.mark.parametrize(("name", "variant"), VARIANTS, ids=IDS)
def test_without_any_one_name_it_is_a_stranger(name, variant):
    assert variant.has
    for missing in variant.has:
        rest = [each for each in variant.has if each != missing]
        assert adapters.find(stand_in(variant.kind, rest)) is None


@pytest.mark.parametrize(("name", "variant"), VARIANTS, ids=IDS)
def test_another_class_with_the_same_names_is_a_stranger(name, variant):
    assert adapters.find(stand_in("SomebodyElses", variant.has)) is None


@pytest.mark.parametrize(("name", "variant"), VARIANTS, ids=IDS)
def test_a_subclass_is_recognised(name, variant):
    host = stand_in(variant.kind, variant.has)
    host.__class__ = type("Derived", (type(host),), {})
    assert adapters.get(name).variant(host) is variant
