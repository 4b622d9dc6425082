"""Nested arguments and outputs: every tensor is found, reached again by its path, and replaced without loss."""

from collections import OrderedDict, defaultdict, namedtuple
from dataclasses import dataclass
from types import MappingProxyType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inpaint_distill.host.tree import format_path, rebuild, select, tensors

Pair = namedtuple("Pair", ["image", "mask"])


@dataclass(frozen=True)
class Output:
    sample: object
    skips: object = None


leaves = st.one_of(st.integers(0, 9).map(torch.tensor), st.none(), st.integers(), st.text(max_size=3), st.booleans())
keys = st.text("abc", min_size=1, max_size=2)
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(keys, inner, max_size=3),
        st.dictionaries(keys, inner, max_size=3).map(OrderedDict),
        st.tuples(inner, inner).map(lambda pair: Pair(*pair)),
        st.tuples(inner, inner).map(lambda pair: Output(*pair)),
    ),
    max_leaves=12,
)


@given(trees)
def test_every_tensor_is_reached_again_by_its_path(tree):
    for path, tensor in tensors(tree):
        assert select(tree, path) is tensor


def test_a_path_is_written_as_python_indexes():
    tree = {"skips": [0, {"deep": torch.ones(2)}]}
    ((path, tensor),) = tensors(tree)
    assert format_path(path) == "['skips'][1]['deep']"
    assert tree["skips"][1]["deep"] is tensor


@given(trees)
def test_rebuilding_without_a_change_gives_an_equal_tree_of_the_same_types(tree):
    copy = rebuild(tree, lambda path, tensor: tensor)
    assert repr(copy) == repr(tree)
    assert [(p, id(t)) for p, t in tensors(copy)] == [(p, id(t)) for p, t in tensors(tree)]


@given(trees)
def test_rebuilding_changes_every_tensor_once_and_leaves_the_original(tree):
    before = repr(tree)
    seen = []

    def change(path, tensor):
        seen.append(path)
        return tensor + 100

    changed = dict(tensors(rebuild(tree, change)))
    assert seen == [path for path, _ in tensors(tree)]
    assert all(torch.equal(changed[path], tensor + 100) for path, tensor in tensors(tree))
    assert repr(tree) == before


def test_a_default_dict_stays_one():
    tree = defaultdict(list, {"x": torch.zeros(1)})
    copy = rebuild(tree, lambda path, tensor: tensor + 1)
    assert type(copy) is defaultdict
    assert copy["x"] == 1
    assert copy["new"] == []


def test_a_read_only_mapping_is_walked():
    assert [path for path, _ in tensors(MappingProxyType({"x": torch.zeros(1)}))] == [("x",)]


def test_a_missing_member_is_named():
    with pytest.raises(LookupError, match=r"'b'.*dict.*\['a'\]"):
        select({"a": 1}, ("b",))
    with pytest.raises(LookupError, match="Tensor"):
        select(torch.zeros(3), (0,))
