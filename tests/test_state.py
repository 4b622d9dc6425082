"""One file, whole or not at all, that nothing in it can execute."""

import json
import os
import pickle

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from inpaint_distill.errors import StateError
from inpaint_distill.state import read_state, write_state

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.lists(st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=3)), max_size=5),
    st.dictionaries(st.text(max_size=3), values, max_size=3),
)
def test_what_is_written_is_read_bit_for_bit(tmp_path_factory, kinds, extra):
    path = tmp_path_factory.mktemp("state") / "file"
    tensors = {f"part/{i}.x": torch.randint(0, 2, shape).to(dtype) for i, (dtype, shape) in enumerate(kinds)}
    write_state(path, tensors, extra)
    found, header = read_state(path)
    assert header == extra
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_shared_transposed_and_graph_tensors_are_written_as_values(tmp_path):
    base = torch.arange(12.0).view(3, 4).requires_grad_()
    write_state(tmp_path / "s", {"a": base, "b": base.t(), "c": base[1] * 2, "d": base}, {})
    found, _ = read_state(tmp_path / "s")
    assert torch.equal(found["b"], base.detach().t())
    assert torch.equal(found["c"], base.detach()[1] * 2)
    assert torch.equal(found["a"], found["d"])


def test_a_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch):
    path = tmp_path / "state"
    write_state(path, {"x": torch.ones(2)}, {"step": 1})

    def fail(*args):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(StateError, match="disk full"):
            write_state(path, {"x": torch.zeros(2)}, {"step": 2})
    assert read_state(path)[1] == {"step": 1}
    assert [each.name for each in tmp_path.iterdir()] == ["state"]


def test_what_json_cannot_hold_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(TypeError):
        write_state(tmp_path / "state", {}, {"object": object()})
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_is_an_error_that_says_so(tmp_path):
    with pytest.raises(StateError, match="existing, writable folder"):
        write_state(tmp_path / "no" / "state", {}, {})


@pytest.mark.parametrize(
    "make",
    [
        lambda path: None,
        lambda path: path.mkdir(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(pickle.dumps({"x": 1})),
        lambda path: torch.save({"x": torch.ones(1)}, path),
        lambda path: safetensors.torch.save_file({"x": torch.ones(1)}, path),
        lambda path: safetensors.torch.save_file({"x": torch.ones(1)}, path, {"format": "pt"}),
        lambda path: safetensors.torch.save_file({"x": torch.ones(1)}, path, {"format": "inpaint_distill/1"}),
        lambda path: safetensors.torch.save_file(
            {"x": torch.ones(1)}, path, {"format": "inpaint_distill/1", "values": "{"}
        ),
        lambda path: _truncated(path),
    ],
    ids=["missing", "folder", "empty", "pickle", "torch", "foreign", "pt", "no values", "bad json", "truncated"],
)
def test_a_file_that_is_not_ours_is_refused(tmp_path, make):
    path = tmp_path / "state"
    make(path)
    with pytest.raises(StateError) as caught:
        read_state(path)
    assert str(path) in str(caught.value)
    assert "Distiller.save()" in str(caught.value)


def _truncated(path):
    write_state(path, {"x": torch.ones(1000)}, {"step": 1})
    path.write_bytes(path.read_bytes()[:-100])


def test_the_header_is_readable_by_other_tools(tmp_path):
    write_state(tmp_path / "state", {"x": torch.ones(1)}, {"step": 3})
    with safetensors.safe_open(tmp_path / "state", framework="pt") as file:
        assert json.loads(file.metadata()["values"]) == {"step": 3}
