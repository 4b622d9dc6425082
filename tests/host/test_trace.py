"""One dry forward, written down, without a trace in the host."""

import copy

import pytest
import torch
from hosts import ZOO, ZOO_NAMES, batch, footprint, same
from torch import nn
from torch.nn import functional as F

from inpaint_distill.errors import PlanError
from inpaint_distill.host.call import HostCall
from inpaint_distill.host.conventions import find_convention
from inpaint_distill.host.dry_run import trace_call, trace_sizes
from inpaint_distill.host.trace import trace_forward


@pytest.mark.parametrize("name", ZOO_NAMES)
def test_tracing_leaves_nothing_behind(name):
    toy = ZOO[name]
    host = toy.build()
    before, notes, random = copy.deepcopy(host.state_dict()), footprint(host), torch.get_rng_state()
    image, mask = batch()
    events = trace_forward(host, lambda: toy.call(host, image, mask), (32, 32)).events
    assert events[-1].name == ""
    assert same(dict(host.state_dict()), dict(before))
    assert footprint(host) == notes
    assert torch.equal(torch.get_rng_state(), random)


def test_an_error_in_the_forward_leaves_no_hook():
    host = ZOO["concatenated"].build()
    notes = footprint(host)
    with pytest.raises(RuntimeError):
        trace_forward(host, lambda: host(torch.zeros(1, 9, 8, 8)), (8, 8))
    assert footprint(host) == notes


def test_events_are_written_in_the_order_of_completion_with_call_numbers_and_overwrites():
    host = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True))
    host.append(host[1])
    events = trace_forward(host, lambda: host(torch.zeros(2, 3, 8, 8)), (8, 8)).events
    assert [(event.name, event.call, event.kind) for event in events] == [
        ("0", 0, "Conv2d"),
        ("1", 0, "ReLU"),
        ("1", 1, "ReLU"),
        ("", 0, "Sequential"),
    ]
    assert [bool(event.overwritten) for event in events] == [True, True, False, False]
    assert events[0].inputs == [(2, 3, 8, 8)]
    assert [(path, shape) for path, shape, _ in events[0].outputs] == [((), (2, 4, 8, 8))]
    assert [event.leaf for event in events] == [True, True, True, False]


def test_an_overwrite_through_a_view_is_seen():
    class View(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, value):
            feature = self.conv(value)
            F.relu_(feature[:, :2])
            return feature

    host = View()
    (conv, _) = trace_forward(host, lambda: host(torch.zeros(1, 3, 4, 4)), (4, 4)).events
    assert conv.overwritten == {()}


class Strict(nn.Module):
    """Accepts some image sizes only."""

    def __init__(self, *sizes):
        super().__init__()
        self.sizes, self.seen = sizes, []

    def forward(self, image, mask=None):
        if self.sizes and tuple(image.shape[2:]) not in self.sizes:
            raise ValueError(tuple(image.shape[2:]))
        return image


@pytest.mark.parametrize(
    ("side", "sizes", "expected"),
    [
        (16, (), (16, 24)),
        (16, ((16, 32), (16, 16)), (16, 32)),
        (16, ((16, 16),), (16, 16)),
        (256, (), (256, 192)),  # a large host costs less than one of its own forwards
        (256, ((256, 384), (256, 256)), (256, 384)),
        (320, (), (320, 480)),  # 240 is no multiple of 64
    ],
)
def test_a_host_is_traced_on_the_first_size_it_accepts(side, sizes, expected):
    host = Strict(*sizes)
    half = torch.zeros(1, 1, side // 2, side // 2, dtype=torch.bool)
    assert trace_call(host, HostCall((torch.zeros(1, 3, side, side),), {"mask": half})).image_size == expected


def test_an_image_that_is_not_square_is_traced_as_it_is():
    assert trace_call(Strict(), HostCall((torch.zeros(1, 3, 16, 40),))).image_size == (16, 40)


def test_every_map_of_a_call_is_stretched_alike_and_keeps_its_type():
    shapes = []

    class Look(nn.Module):
        def forward(self, image, mask, half):
            shapes.append([(tuple(each.shape[2:]), each.dtype) for each in (image, mask, half)])

    mask = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    trace_call(Look(), HostCall((torch.zeros(1, 3, 16, 16), mask, torch.zeros(1, 1, 8, 8))))
    assert shapes == [[((16, 24), torch.float32), ((16, 24), torch.bool), ((8, 12), torch.float32)]]


def test_a_host_that_accepts_no_size_is_an_error_with_its_own_message():
    def run(size):
        raise RuntimeError("only on Tuesdays")

    with pytest.raises(PlanError, match="only on Tuesdays") as caught:
        trace_sizes(nn.Identity(), run, (16, 16))
    assert isinstance(caught.value.__cause__, RuntimeError)


# -- calling a host of which nothing is known --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("concatenated", "host(cat[image, hole])"),
        ("ones_plane", "host(cat[image, ones, hole])"),
        ("ones_and_mask", "host(cat[image, ones, hole], hole)"),
        ("masks_itself", "host(image, hole)"),
        ("two_stage", "host(image, hole)"),
        ("partial_conv", "host(image, hole)"),
        ("white_holes", "host(image)"),
    ],
)
def test_the_common_conventions_are_recognised(name, expected):
    host = ZOO[name].build()
    notes = footprint(host)
    found = find_convention(host, *batch())
    assert str(found) == expected
    found.pack(*batch()).run(host)
    assert footprint(host) == notes


def test_a_host_under_no_convention_names_those_that_were_tried():
    with pytest.raises(PlanError, match=r"host\(image, hole\)(.|\n)*adapter"):
        find_convention(nn.Linear(7, 7), *batch())


@pytest.mark.parametrize("wrap", ["spectral_norm", "weight_norm"])
def test_a_parametrization_is_no_part_of_the_forward(wrap):
    parametrize = getattr(nn.utils.parametrizations, wrap)
    host = nn.Sequential(
        *(parametrize(nn.Conv2d(channels, 16, 3, stride=2, padding=1)) for channels in (4, 16, 16)),
        parametrize(nn.Conv2d(16, 3, 1)),
    )
    names = [event.name for event in trace_call(host, HostCall((torch.randn(2, 4, 32, 32),))).events]
    assert names == ["0", "1", "2", "3", ""]
