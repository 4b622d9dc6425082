"""Nested arguments and outputs: every tensor is found, reached again by its path, and replaced without loss."""

from collections import OrderedDict, defaultdict, namedtuple
from dataclasses import dataclass, field
from types import MappingProxyType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inpaint_distill.host.tree import copied, format_path, rebuild, select, tensors

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


@dataclass(frozen=True)
class Counted:
    """Has a field that the constructor does not take, and one that nobody has set."""

    image: object
    count: int = field(init=False)
    late: object = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "count", len(self.image))


def test_fields_that_the_constructor_does_not_take_are_kept_and_unset_ones_stay_unset():
    given = Counted([torch.zeros(1), torch.ones(1)])
    for new in (rebuild(given, lambda path, tensor: tensor + 1), copied(given)):
        assert type(new) is Counted
        assert new.image is not given.image
        assert new.count == 2
        assert not hasattr(new, "late")
    assert [path for path, _ in tensors(given)] == [("image", 0), ("image", 1)]


class Named(OrderedDict):
    """Shows its members as attributes too, as the outputs of transformers and diffusers do."""

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        super().__setattr__(key, value)


@dataclass
class Both(Named):
    sample: object = None

    def __post_init__(self):
        self["sample"] = self.sample


def test_a_dataclass_that_is_a_mapping_too_shows_the_same_members_as_both():
    given = Both([torch.zeros(1)])
    for new in (rebuild(given, lambda path, tensor: tensor + 1), copied(given)):
        assert type(new) is Both
        assert new["sample"] is new.sample
        assert new.sample is not given.sample


def test_a_container_that_holds_itself_is_entered_once():
    table, items = {"x": torch.zeros(1)}, [torch.zeros(1)]
    table["table"], table["items"] = table, items
    items += [items, table]
    assert [path for path, _ in tensors(table)] == [("x",), ("items", 0)]
    again = [torch.zeros(1)]
    assert [path for path, _ in tensors([again, again])] == [(0, 0), (1, 0)]


def test_a_read_only_mapping_is_walked():
    assert [path for path, _ in tensors(MappingProxyType({"x": torch.zeros(1)}))] == [("x",)]


def test_a_missing_member_is_named():
    with pytest.raises(LookupError, match=r"'b'.*dict.*\['a'\]"):
        select({"a": 1}, ("b",))
    with pytest.raises(LookupError, match="Tensor"):
        select(torch.zeros(3), (0,))
