"""What runs around a graph of a module compiled in place, with a plain function in the place of the graph."""

import gc
import sys
import weakref

import pytest
import torch
from torch import nn

from inpaint_distill.host.compiling import AroundCompiled, EagerForward, is_compiled_in_place, uncompiled


def compiled(graph):
    module = nn.Linear(2, 2)
    module._compiled_call_impl = graph
    return module


def around(module, told):
    def note(step):
        return lambda *args: told.append((step, *args))

    return AroundCompiled(module, note("before"), note("after"), note("finish"))


def test_a_graph_is_run_between_what_comes_before_and_after_it():
    told = []

    def graph(*args, **kwargs):
        told.append(("graph", *args, kwargs))
        return "output"

    module = compiled(graph)
    around(module, told)
    assert module(1, 2, key=3) == "output"
    assert told == [
        ("before", module, (1, 2), {"key": 3}),
        ("graph", 1, 2, {"key": 3}),
        ("after", module, (1, 2), "output"),
        ("finish", module, (1, 2), None),
    ]


def test_a_graph_that_fails_is_finished_and_its_error_raised():
    told = []
    module = compiled(lambda *args: 1 / 0)
    around(module, told)
    with pytest.raises(ZeroDivisionError):
        module(1)
    assert told == [("before", module, (1,), {}), ("finish", module, (1,), None)]


def test_a_module_gets_its_own_call_back_unless_another_was_put_around_it_since():
    def graph(*args):
        return "output"

    module = compiled(graph)
    first = around(module, [])
    second = around(module, [])
    first.remove()
    assert module._compiled_call_impl is second
    second.remove()
    assert module._compiled_call_impl is first
    first.remove()
    assert module._compiled_call_impl is graph


def test_a_module_is_not_kept_alive_and_need_not_be_there_when_its_call_is_given_back():
    module = compiled(lambda *args: None)
    alone, gone = around(module, []), weakref.ref(module)
    del module
    gc.collect()
    assert gone() is None
    alone.remove()


def test_a_module_whose_call_is_a_graph_is_told_from_one_that_is_not():
    assert is_compiled_in_place(compiled(lambda: None))
    assert not is_compiled_in_place(nn.Linear(2, 2))


class Stance:
    """Stands for ``torch.compiler.set_stance``."""

    def __init__(self):
        self.open = []

    def __call__(self, name):
        self.name = name
        return self

    def __enter__(self):
        self.open.append(self.name)

    def __exit__(self, *error):
        assert error == (None, None, None)
        self.open.pop()


@pytest.fixture
def stance(monkeypatch):
    stance = Stance()
    monkeypatch.setattr(torch.compiler, "set_stance", stance, raising=False)
    monkeypatch.setitem(sys.modules, "torch._dynamo", sys.modules.get("torch._dynamo", sys))
    return stance


def test_every_module_runs_as_it_was_written_while_no_graph_may_be_used(stance):
    with uncompiled():
        assert stance.open == ["force_eager"]
    assert stance.open == []


@pytest.mark.parametrize("missing", ["nothing compiled", "an older torch"])
def test_where_there_can_be_no_graph_nothing_is_to_be_undone(stance, missing, monkeypatch):
    if missing == "nothing compiled":
        monkeypatch.delitem(sys.modules, "torch._dynamo")
    else:
        monkeypatch.delattr(torch.compiler, "set_stance")
    with uncompiled():
        assert stance.open == []


def test_an_eager_forward_ends_what_an_interrupted_one_began(stance):
    forward = EagerForward()
    forward.end()
    forward.begin()
    forward.begin()
    assert stance.open == ["force_eager"]
    forward.end()
    forward.end()
    assert stance.open == []
