"""One file, whole or not at all, that nothing in it can execute."""

import json
import os
import pickle
import struct

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from inpaint_distill import state
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


def test_what_was_read_stays_as_it_is_whatever_becomes_of_the_file(tmp_path):
    path = tmp_path / "state"
    write_state(path, {"x": torch.ones(100_000)}, {})
    found, _ = read_state(path)
    path.write_bytes(bytes(path.stat().st_size))  # into the file, as a copy over it does
    assert torch.equal(found["x"], torch.ones(100_000))
    path.write_bytes(b"")
    assert torch.equal(found["x"], torch.ones(100_000))


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


HEADERS = {
    "longer": {"format": "inpaint_distill/2", "values": "{}", "sha256": "0" * 64},
    "without checksum": {"format": "inpaint_distill/2", "values": "{}"},
    "with half a checksum": {"format": "inpaint_distill/2", "values": "{}", "sha256": "0" * 32},
    "foreign": {"format": "pt"},
    "without a header of its own": None,
}


@pytest.mark.parametrize("metadata", [pytest.param(metadata, id=name) for name, metadata in HEADERS.items()])
def test_a_huge_file_that_is_not_ours_is_refused_before_it_is_read(tmp_path, monkeypatch, request, metadata):
    size, path = 2**31, tmp_path / "state"
    tensor = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
    header = json.dumps({"x": tensor} if metadata is None else {"__metadata__": metadata, "x": tensor}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    os.truncate(path, 8 + len(header) + size + ("longer" in request.node.name))  # a hole: it takes no room on the disk
    monkeypatch.setattr(safetensors.safe_open, "get_tensor", pytest.fail, raising=False)
    monkeypatch.setattr(state, "_checksum", pytest.fail)
    with pytest.raises(
        StateError, match=r"found: (a safetensors file of format|a damaged file, whose|SafetensorError)"
    ):
        read_state(path)


def test_the_header_is_readable_by_other_tools(tmp_path):
    write_state(tmp_path / "state", {"x": torch.ones(1)}, {"step": 3})
    with safetensors.safe_open(tmp_path / "state", framework="pt") as file:
        assert json.loads(file.metadata()["values"]) == {"step": 3}
