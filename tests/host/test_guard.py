"""A dry run leaves a module, and the random numbers, as they were: bit for bit."""

import copy
import random
from collections import deque
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hosts import ZOO, ZOO_NAMES, batch, footprint, reconstruct, same
from torch import nn

from inpaint_distill.host.guard import copy_module, forked_rng, untouched


@pytest.mark.parametrize("name", ZOO_NAMES)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_a_forward_inside_untouched_leaves_every_host_as_it_was(name, training):
    toy = ZOO[name]
    host = toy.build()
    host.train(training)
    torch.rand(3)
    before, notes, state = copy.deepcopy(host.state_dict()), footprint(host), torch.get_rng_state()
    with untouched(host), torch.no_grad():
        toy.call(host, *batch())
        torch.rand(7)
    assert same(dict(host.state_dict()), dict(before))
    assert footprint(host) == notes
    assert torch.equal(torch.get_rng_state(), state)


class Everything(nn.Module):
    """Changes all that a forward can change."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("replaced", torch.zeros(2))
        self.register_buffer("scratch", None)
        self.register_buffer("rows", torch.zeros(3, 1))
        self.register_buffer("grid", self.rows.expand(3, 4))
        self.register_buffer("grid_replaced", torch.zeros(1, 2).expand(5, 2))
        self.fixed = nn.Parameter(torch.ones(2), requires_grad=False)
        self.through_data = nn.Parameter(torch.ones(2), requires_grad=False)
        self.seen, self._private, self.items, self.table = 0, None, [1], {"a": 1}
        self.loose, self.last = torch.zeros(()), deque([1, 2], maxlen=2)
        self.counts, self.steps = [torch.zeros(2)], {"a": torch.zeros(2)}

    def forward(self, value):
        self.count += 1
        self.replaced = self.replaced + 1
        self.scratch = value.detach()
        self.rows += 1  # and the grid, which shows them several times
        self.grid_replaced.data = self.grid_replaced.data + 1
        with torch.no_grad():
            self.fixed.mul_(2)
        self.through_data.data = self.through_data.data * 3
        self.seen += 1
        for each in (self.loose, *self.counts, *self.steps.values()):
            each += 1
        self.last.append(value)
        self._private = value
        self.new = value
        self._new = value
        self.items.append(value)
        self.table["b"] = value
        self.train(not self.training)
        return self.norm(value)


def test_everything_a_forward_can_change_is_given_back():
    module = Everything()
    items, table, last = module.items, module.table, module.last
    before, notes = copy.deepcopy(module.state_dict()), footprint(module)
    objects = {name: id(tensor) for name, tensor in (*module.named_parameters(), *module.named_buffers())}
    with untouched(module), torch.no_grad():
        module(torch.randn(2, 3, 4, 4))
    assert same(dict(module.state_dict()), dict(before))
    assert footprint(module) == notes
    assert {n: id(t) for n, t in (*module.named_parameters(), *module.named_buffers())} == objects
    assert module.items is items
    assert items == [1]
    assert module.table is table
    assert table == {"a": 1}
    assert module.last is last
    assert list(last) == [1, 2]
    assert not any(each.any() for each in (module.loose, *module.counts, *module.steps.values()))


def test_what_an_exception_left_is_given_back_too():
    module = Everything()
    before = copy.deepcopy(module.state_dict())
    module.norm.register_forward_hook(_fail)
    with pytest.raises(ZeroDivisionError), untouched(module), torch.no_grad():
        module(torch.randn(2, 3, 4, 4))
    assert same(dict(module.state_dict()), dict(before))


@pytest.mark.parametrize("name", ["batch_norm", "hook_spectral_norm", "data_spectral_norm"])
def test_a_graph_that_is_still_open_can_run_backward_after_a_dry_run(name):
    toy = ZOO[name]
    host = toy.build()
    gradients = []
    for between in (False, True):
        host.load_state_dict(toy.build().state_dict())
        host.zero_grad()
        loss = reconstruct(toy, host, *batch())
        if between:
            with untouched(host), torch.no_grad():
                toy.call(host, *batch(1))
        loss.backward()
        gradients.append([p.grad.clone() for p in host.parameters() if p.grad is not None])
    assert same(gradients[0], gradients[1])


def _fail(*args):
    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(7)
    raise ZeroDivisionError


@pytest.mark.parametrize("others", [True, False])
def test_forked_random_state_comes_back_after_an_error(others):
    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(1)
    state = torch.get_rng_state(), random.getstate(), np.random.get_state()[1:3]
    with pytest.raises(ZeroDivisionError), forked_rng(others=others):
        _fail()
    assert torch.equal(torch.get_rng_state(), state[0])
    assert (random.getstate() == state[1]) is others
    assert all(map(np.array_equal, np.random.get_state()[1:3], state[2])) is others


@pytest.mark.parametrize("name", ZOO_NAMES)
@pytest.mark.parametrize("when", ["fresh", "after a forward with gradients"])
def test_every_host_can_be_copied_at_any_time(name, when):
    toy = ZOO[name]
    host = toy.build()
    image, mask = batch()
    if when != "fresh":
        reconstruct(toy, host, image, mask)
    twin = copy_module(host)
    assert same(dict(twin.state_dict()), dict(host.state_dict()))
    outputs = []
    for each in (host, twin):
        torch.manual_seed(0)
        outputs.append(toy.select(toy.call(each, image, mask)))
    assert torch.equal(outputs[0], outputs[1])
    mine = {id(t) for t in (*host.parameters(), *host.buffers())}
    assert not mine & {id(t) for t in (*twin.parameters(), *twin.buffers())}


def test_an_expanded_buffer_is_copied_to_one_that_can_be_written_and_loaded():
    module = nn.Module()
    module.register_buffer("grid", torch.arange(3.0).expand(2, 3))
    twin = copy_module(module)
    assert same(dict(twin.state_dict()), dict(module.state_dict()))
    twin.grid.add_(1)
    twin.load_state_dict(module.state_dict())
    assert same(dict(twin.state_dict()), dict(module.state_dict()))
    assert module.grid.stride() == (0, 1)


@dataclass
class Late:
    value: object = field(init=False)


def test_a_module_whose_attributes_hold_themselves_or_lack_a_field_is_copied():
    module = nn.Linear(2, 2)
    module.table, module.late = {"a": 1}, Late()
    module.table["table"] = module.table
    twin = copy_module(module)
    assert twin.table["table"] is twin.table
    assert not hasattr(twin.late, "value")


@pytest.mark.parametrize("where", ["attribute", "list", "dict", "buffer"])
def test_a_tensor_with_a_graph_is_copied_wherever_it_is_kept(where):
    module = nn.Linear(2, 2)
    value = module(torch.ones(2))
    if where == "buffer":
        module.register_buffer("kept", torch.zeros(2))
        module.kept = value
    else:
        module.kept = {"attribute": value, "list": [value], "dict": {"a": (value, 0)}}[where]
    twin = copy_module(module)
    found = {"attribute": lambda k: k, "buffer": lambda k: k, "list": lambda k: k[0], "dict": lambda k: k["a"][0]}
    kept = found[where](twin.kept)
    assert torch.equal(kept, value)
    assert not kept.requires_grad
