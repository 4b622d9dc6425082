"""Which batches a look-ahead keeps and when it is due, how its Adam moves, and what it saves and loads."""

import copy

import pytest
import torch
from torch import nn

from inpaint_distill import LookaheadConfig
from inpaint_distill.host.call import HostCall
from inpaint_distill.host.guard import RandomState
from inpaint_distill.lookahead.host_problem import Batch
from inpaint_distill.lookahead.lookahead import Lookahead

EMPTY = {"active": True, "unrolls": False, "last": -1}


def parameters(*names):
    return {name: nn.Parameter(torch.ones(2), requires_grad=False) for name in names or ("rho",)}


def call(number=0.0, **more):
    """Make a host's call of two tensors and a flag; the number tells one from another."""
    return HostCall((torch.full((1, 4, 2, 2), float(number)), True), {"scale": torch.tensor(float(number))}, **more)


def remember(lookahead, step, number, autocast=None):
    image, mask = torch.full((1, 3, 2, 2), float(number)), torch.full((1, 1, 2, 2), number / 10)
    lookahead.remember(step, call(number), image, mask, autocast)


def numbers(lookahead):
    """Return which batches are kept."""
    return [float(kept.image[0, 0, 0, 0]) for kept in lookahead._batches]


# -- batches -----------------------------------------------------------------------------------------------------------


def test_a_kept_batch_is_a_copy_without_a_graph_and_without_its_random_state():
    tensor = torch.ones(1, 4, 2, 2, requires_grad=True)
    given = HostCall((tensor * 2, "flag"), {"mask": tensor}, RandomState.now(torch.device("cpu")))
    image, mask = torch.ones(1, 3, 2, 2), torch.zeros(1, 1, 2, 2)
    kept = Batch.copy(given, image, mask, torch.bfloat16)
    assert kept.call.random is None
    assert kept.call.args[1] == "flag"
    assert kept.autocast == torch.bfloat16
    assert torch.equal(kept.call.args[0], tensor.detach() * 2)
    for own, other in ((kept.image, image), (kept.mask, mask), (kept.call.kwargs["mask"], tensor)):
        assert torch.equal(own, other)
        assert own.data_ptr() != other.data_ptr()
    assert not any(each.requires_grad for _, each in kept.call.tensors())


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_a_batch_is_repeated_under_the_autocast_that_the_host_ran_under(dtype):
    kept = Batch.copy(call(), torch.ones(1, 3, 2, 2), torch.ones(1, 1, 2, 2), dtype)
    with kept.cast():
        assert torch.is_autocast_enabled("cpu") == (dtype is not None)
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == (dtype or torch.float32)
    assert Batch.copy(call(), torch.ones(1), torch.ones(1)).autocast is None


@pytest.mark.parametrize(("every", "kept"), [(1, [[0], [0, 1], [1, 2]]), (2, [[0], [0, 1], [1, 2]])])
def test_of_a_short_period_every_batch_is_kept(every, kept):
    lookahead = Lookahead(LookaheadConfig(every=every), parameters())
    found = [remember(lookahead, step, step) or numbers(lookahead) for step in range(3)]
    assert found == kept


def test_of_a_longer_period_the_last_two_batches_before_the_look_ahead_are_kept():
    lookahead = Lookahead(LookaheadConfig(every=5), parameters())
    found = [remember(lookahead, step, step) or numbers(lookahead) for step in range(5)]
    assert found == [[], [], [], [3], [3, 4]]
    assert [lookahead.due(steps) for steps in range(4, 8)] == [False, True, False, False]


def test_of_several_batches_of_one_step_the_last_is_kept():
    lookahead = Lookahead(LookaheadConfig(every=2), parameters())
    for step, number in [(0, 1), (0, 2), (1, 3), (1, 4), (1, 5)]:
        remember(lookahead, step, number)
    assert numbers(lookahead) == [2, 5]


@pytest.mark.parametrize("engine", ["off", "unroll"])
def test_nothing_is_kept_and_nothing_is_due_where_there_is_nothing_to_train(engine):
    lookahead = Lookahead(LookaheadConfig(every=1, engine=engine), parameters() if engine == "off" else {})
    for step in range(3):
        remember(lookahead, step, step)
    assert lookahead.active is False
    assert numbers(lookahead) == []
    assert lookahead.due(3) is False
    assert lookahead.objective is None
    assert Lookahead(LookaheadConfig(), {}).state() == ({}, {"active": False, "unrolls": False, "last": -1})


def test_one_batch_is_not_enough():
    lookahead = Lookahead(LookaheadConfig(every=2), parameters())
    remember(lookahead, 1, 1)
    assert not lookahead.due(2)


@pytest.mark.parametrize(("every", "left"), [(1, [1, 2]), (2, []), (3, [])])
def test_batches_that_the_next_look_ahead_needs_not_are_freed(every, left):
    lookahead = Lookahead(LookaheadConfig(every=every), parameters())
    remember(lookahead, every - 1, 1)
    lookahead._last = -1
    remember(lookahead, every - 1, 2)
    assert numbers(lookahead) == [1, 2]

    def refuse(first, second):
        assert [float(each.image[0, 0, 0, 0]) for each in (first, second)] == [1, 2]
        raise KeyError("stop here")

    with pytest.raises(KeyError):
        lookahead.look(refuse)
    assert numbers(lookahead) == left


# -- Adam --------------------------------------------------------------------------------------------------------------


def test_the_meta_networks_move_as_by_adam_and_keep_no_gradient():
    meta = parameters("rho", "phi")
    lookahead = Lookahead(LookaheadConfig(meta_lr=0.03), meta)
    plain = [nn.Parameter(torch.ones(2)) for _ in meta]
    adam = torch.optim.Adam(plain, lr=0.03, eps=1e-12)
    for step in range(4):
        gradients = [torch.tensor([1e-9, -2.0 * step]), torch.tensor([0.5, 3.0])]
        lookahead._step({"phi": gradients[1].double(), "rho": gradients[0].double()})
        for parameter, gradient in zip(plain, gradients, strict=True):
            parameter.grad = gradient
        adam.step()
    for parameter, wanted in zip(meta.values(), plain, strict=True):
        torch.testing.assert_close(parameter.data, wanted.data)
        assert parameter.grad is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_gradient_that_is_not_finite_moves_nothing_and_the_others_do_theirs(bad):
    meta = parameters()
    lookahead = Lookahead(LookaheadConfig(meta_lr=0.5), meta)
    lookahead._step({"rho": torch.tensor([bad, 1.0])})
    torch.testing.assert_close(meta["rho"].data, torch.tensor([1.0, 0.5]))


# -- save and load -----------------------------------------------------------------------------------------------------


def moved(*steps):
    """Return a look-ahead with moments of two steps and the batches of these steps."""
    lookahead = Lookahead(LookaheadConfig(every=2, engine="unroll"), parameters("rho", "phi"))
    for factor in (1.0, -3.0):
        lookahead._step({"rho": torch.tensor([1.0, 2.0]) * factor, "phi": torch.tensor([0.1, 7.0]) * factor})
    for step in steps:
        remember(lookahead, step, step + 1, torch.bfloat16)
    return lookahead


def test_a_state_holds_moments_and_batches_by_name():
    tensors, values = moved(2, 3).state()
    moments = [f"moments/{name}/{key}" for name in ("rho", "phi") for key in ("step", "exp_avg", "exp_avg_sq")]
    batches_ = [f"batches/{index}/{key}" for index in (0, 1) for key in ("image", "mask", "call0", "call1")]
    assert list(tensors) == moments + batches_
    assert values == {"active": True, "unrolls": True, "last": 3}
    assert float(tensors["moments/rho/step"]) == 2
    assert float(tensors["batches/1/image"].mean()) == 4
    assert float(tensors["batches/0/call1"]) == 3


@pytest.mark.parametrize("steps", [(), (2,), (2, 3)])
def test_a_loaded_look_ahead_moves_on_as_the_saved_one_would_have(steps):
    first, second = moved(*steps), Lookahead(LookaheadConfig(every=2), parameters("rho", "phi"))
    tensors, values = copy.deepcopy(first.state())
    with torch.no_grad():
        for name, parameter in second.meta.items():
            parameter.copy_(first.meta[name])
    second._step({name: torch.ones(2) * 0 for name in second.meta})
    remember(second, 0, 9)
    second.load(tensors, values)
    assert numbers(second) == []
    assert second.state()[0].keys() == tensors.keys()
    assert second.state()[1] == values
    for lookahead in (first, second):
        remember(lookahead, 4, 5, torch.bfloat16)
    assert numbers(second) == numbers(first)
    for own, other in zip(second._batches, first._batches, strict=True):
        assert own.autocast == other.autocast
        assert torch.equal(own.mask, other.mask)
        assert own.call.args[1] is True
        assert torch.equal(own.call.args[0], other.call.args[0])
        assert torch.equal(own.call.kwargs["scale"], other.call.kwargs["scale"])
    with torch.no_grad():
        for name, parameter in second.meta.items():
            parameter.copy_(first.meta[name])
    for lookahead in (first, second):
        lookahead._step({name: torch.tensor([0.3, -0.2]) for name in lookahead.meta})
    for name, parameter in first.meta.items():
        assert torch.equal(second.meta[name], parameter)


@pytest.mark.parametrize("active", [False, True])
def test_whether_it_is_active_and_by_which_engine_is_loaded(active):
    lookahead = Lookahead(LookaheadConfig(), parameters())
    lookahead.load({}, {"active": active, "unrolls": active, "last": 7})
    assert lookahead.state()[1] == {"active": active, "unrolls": active, "last": 7}
    assert lookahead.state()[0] == {}


def test_a_state_without_meta_networks_is_loaded_too():
    lookahead = Lookahead(LookaheadConfig(engine="off"), {})
    lookahead.load({"moments/rho/step": torch.ones(())}, {**EMPTY, "active": False})
    assert lookahead.state() == ({}, {**EMPTY, "active": False})


def test_what_is_loaded_goes_to_where_the_host_and_the_meta_networks_are():
    """The device ``meta`` stands for an accelerator."""
    tensors, values = moved(2).state()
    there = {name: nn.Parameter(torch.ones(2, device="meta"), requires_grad=False) for name in ("rho", "phi")}
    lookahead = Lookahead(LookaheadConfig(every=2), there)
    lookahead.load(tensors, values)
    found = {name: value.device.type for name, value in lookahead.state()[0].items() if name.startswith("moments/")}
    # Adam keeps its count on the CPU.
    assert found == {name: "cpu" if name.endswith("/step") else "meta" for name in found}
    now = HostCall((torch.ones(1, 4, 2, 2, device="meta"), True), {"scale": torch.ones((), device="meta")})
    lookahead.remember(3, now, torch.ones(1, 3, 2, 2, device="meta"), torch.ones(1, 1, 2, 2, device="meta"))
    assert len(lookahead._batches) == 2
    for kept in lookahead._batches:
        places = [kept.image, kept.mask, *(tensor for _, tensor in kept.call.tensors())]
        assert {each.device.type for each in places} == {"meta"}


# -- the look itself ---------------------------------------------------------------------------------------------------


class Halving:
    """Distillation pulls theta to 0 at the rate rho; the inpainting loss wants it at 0 too."""

    def theta(self):
        return {"theta": torch.full((4,), 1.0)}

    def distillation(self, theta, meta, anchor=None):
        torch.rand(3)
        return 0.5 * (meta["rho"][0] * theta["theta"].square()).sum(), None

    def inpainting(self, theta):
        assert torch.is_grad_enabled()
        assert not torch.is_autocast_enabled("cpu")
        return theta["theta"].square().sum()


@pytest.mark.parametrize(
    ("engine", "steps", "left"), [("finite_difference", 1, 0.75), ("unroll", 1, 0.75), ("unroll", 2, 0.75**2)]
)
def test_it_looks_ahead_by_the_engine_steps_and_rate_asked_for(engine, steps, left):
    meta = parameters()
    lookahead = Lookahead(LookaheadConfig(engine=engine, steps=steps, lr=0.25, meta_lr=0.5, every=1), meta)
    for step in range(2):
        remember(lookahead, step, step)
    state = torch.get_rng_state()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        lookahead.look(lambda first, second: Halving())
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(torch.get_rng_state(), state)
    assert float(lookahead.objective) == pytest.approx(4 * left**2)
    # A larger rho would pull further: Adam's first step is its learning rate, and rho[1] counts nothing.
    assert meta["rho"].tolist() == pytest.approx([1.5, 1.0])
