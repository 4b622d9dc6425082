"""The host's call: its arguments by name, its sizes, and the hole that it carries."""

import pytest
import torch
from torch import nn

from inpaint_distill.host.call import HostCall, argument_name
from inpaint_distill.host.guard import RandomState, module_device
from inpaint_distill.host.hole import HoleSource


class Host(nn.Module):
    """A forward with every kind of parameter."""

    def forward(self, image, /, mask=None, *rest, scale=1, **more):
        return image * scale


class Pair(nn.Module):
    """Two arguments and no more."""

    def forward(self, image, batch):
        return image


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ((0,), "argument 'image'"),
        ((1, "x", 0), "argument 'mask'['x'][0]"),
        ((2,), "positional argument 2"),
        ((3, 1), "positional argument 3[1]"),
        ((9,), "positional argument 9"),
        (("scale",), "argument 'scale'"),
        (("other", 2), "argument 'other'[2]"),
    ],
)
def test_an_argument_is_named_as_the_hosts_author_did(path, name):
    assert argument_name(Host(), path) == name


def test_a_call_is_rebuilt_with_every_tensor_changed_and_everything_else_kept():
    state = RandomState.now(module_device(Host()))
    call = HostCall((torch.ones(1), ["a", torch.ones(2)]), {"x": torch.ones(3), "flag": True}, state)
    assert [path for path, _ in call.tensors()] == [(0,), (1, 1), ("x",)]
    seen = []

    def double(path, tensor):
        seen.append(path)
        return tensor * 2

    found = call.rebuild(double)
    assert seen == [(0,), (1, 1), ("x",)]
    assert found.random is state
    assert found.args[1][0] == "a"
    assert found.kwargs["flag"] is True
    assert [tensor.sum().item() for _, tensor in found.tensors()] == [2, 4, 6]
    assert [tensor.sum().item() for _, tensor in call.tensors()] == [1, 2, 3]
    assert HostCall((1,)).rebuild(double).kwargs == {}


def test_a_call_is_run_with_its_arguments_and_the_random_numbers_drawn_with_them():
    class Draw(nn.Module):
        def forward(self, value, scale=1):
            return value + scale * torch.rand(3)

    state = RandomState.now(torch.device("cpu"))
    torch.rand(3)
    later = RandomState.now(torch.device("cpu"))
    first = HostCall((torch.zeros(3),), {"scale": 2}, state).run(Draw())
    second = HostCall((torch.zeros(3),), {"scale": 2}, state).run(Draw())
    assert torch.equal(first, second)
    assert RandomState.now(torch.device("cpu")) == later != state, "the user's own stream goes on"
    assert not torch.equal(HostCall((torch.zeros(3),), {"scale": 2}).run(Draw()), first)
    assert HostCall((torch.zeros(3),)).run(Draw()).max() < 1
    state.restore()
    assert RandomState.now(torch.device("cpu")) == state
    assert state != "a state"


def test_the_size_of_a_call_is_that_of_its_largest_picture():
    small, tall, wide = torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 40, 2), torch.zeros(2, 1, 6, 16)
    assert HostCall((small, tall), {"x": [wide]}).image_size() == (6, 16)
    assert HostCall((tall, small)).image_size() == (40, 2)
    assert HostCall((torch.zeros(2, 99, 99), torch.zeros(1, 2, 3, 99, 99))).image_size() is None


def test_a_signature_tells_types_and_channels_but_neither_batches_nor_sizes():
    def signature(*shape, dtype=torch.float32):
        return HostCall((torch.zeros(shape, dtype=dtype), 3), {"steps": torch.zeros(2)}).signature()

    assert signature(2, 3, 8, 8) == signature(5, 3, 4, 16)
    assert signature(2, 3, 8, 8) != signature(2, 4, 8, 8)
    assert signature(2, 3, 8, 8) != signature(2, 3, 8, 8, dtype=torch.float64)
    assert signature(2, 3, 8, 8) == (((0,), torch.float32, (3,)), (("steps",), torch.float32, ()))


# -- the hole ----------------------------------------------------------------------------------------------------------


def source(path, **rest):
    return HoleSource(path=path, **{"channel": 0, "slope": 1.0, "bias": 0.0, **rest})


@pytest.mark.parametrize(
    ("path", "also"),
    [((0,), "image"), ((1, "x"), "batch"), ((2,), None), (("batch", 0), 1), (("image",), 0), (("more",), None)],
)
def test_the_other_key_of_an_argument_is_looked_up_in_the_hosts_forward(path, also):
    found = source(path, channel=2, slope=3.0, bias=4.0).named(Pair())
    assert found == source(path, channel=2, slope=3.0, bias=4.0, also=also)


def test_a_hole_is_read_from_its_channel_in_its_range_by_either_key():
    hole = (torch.rand(2, 1, 4, 6) > 0.5).float()
    planes = torch.cat([torch.rand(2, 2, 4, 6), 5 - 2 * hole, torch.rand(2, 1, 4, 6)], 1).requires_grad_()
    place = source((1, "x"), channel=2, slope=-2.0, bias=5.0, also="batch")
    for args, kwargs in (((None, {"x": planes}), {}), ((None,), {"batch": {"x": planes}})):
        found = place.read(args, kwargs)
        torch.testing.assert_close(found, hole)
        assert not found.requires_grad
    by_name = source(("batch",), channel=2, slope=-2.0, bias=5.0, also=1)
    for args, kwargs in (((None, planes), {}), ((None,), {"batch": planes})):
        torch.testing.assert_close(by_name.read(args, kwargs), hole)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float16, torch.float64])
def test_a_hole_of_any_type_and_without_channels_is_read_as_one_plane(dtype):
    hole = torch.rand(2, 4, 6) > 0.5
    found = source((0,)).read((hole.to(dtype),), {})
    assert found.dtype == torch.float32
    assert torch.equal(found, hole.float().unsqueeze(1))
