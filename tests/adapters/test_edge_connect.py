"""EdgeConnect's completion network: its block, its white holes, its edges, its activations in place."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import inpaint_distill
from inpaint_distill import adapters
from inpaint_distill.adapters.edge_connect import EdgeConnectGenerator
from inpaint_distill.adapters.edge_connect.network import DilatedResidual
from inpaint_distill.errors import ConfigError, InputError, PlanError, ReplayError
from inpaint_distill.host.adapted import derive
from inpaint_distill.host.call import HostCall
from inpaint_distill.host.taps import FeatureTaps
from inpaint_distill.plan import plan


def random(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def host():
    torch.manual_seed(0)
    return EdgeConnectGenerator(width=4, blocks=1)


@pytest.fixture
def batch():
    """Return images in [-1, 1] and their holes."""
    hole = torch.zeros(2, 1, 32, 32)
    hole[:, :, 6:17, 5:22] = 1
    return random(2, 3, 32, 32) * 2 - 1, hole


def white(image, hole):
    """Return what EdgeConnect's own training hands in: [0, 1] with white holes."""
    return torch.where(hole > 0, torch.ones_like(image), (image + 1) / 2)


def test_block_adds_a_dilated_and_a_plain_convolution_each_normalised_over_its_map():
    block = DilatedResidual(3).double()
    x = random(2, 3, 9, 11).double()

    def normalise(y):
        mean, variance = y.mean((2, 3), keepdim=True), y.var((2, 3), keepdim=True, correction=0)
        return (y - mean) / (variance + 1e-5).sqrt()

    first, second = block.wide.weight, block.near.weight
    inner = normalise(F.conv2d(F.pad(x, (2,) * 4, mode="reflect"), first, dilation=2)).clamp(min=0)
    expected = x + normalise(F.conv2d(F.pad(inner, (1,) * 4, mode="reflect"), second))
    torch.testing.assert_close(block(x), expected)


def test_the_host_sees_white_holes_in_unit_range_and_an_edge_map_but_no_mask(host, batch):
    seen = []
    host.encoder.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    adapters.get("edge-connect").call(host, *batch)
    torch.testing.assert_close(seen[0], torch.cat([white(*batch), torch.zeros_like(batch[1])], dim=1))


def test_the_teacher_gets_the_complete_image_and_the_edges_as_they_are(host, batch):
    image, hole = batch
    edges = (random(2, 1, 32, 32, seed=1) > 0.9).float()
    call = HostCall((torch.cat([white(image, hole), edges], dim=1),))
    found = derive(host, call, image, hole, adapters.get("edge-connect")).apply(call, image)
    torch.testing.assert_close(found.args[0], torch.cat([(image + 1) / 2, edges], dim=1))
    with pytest.raises(ReplayError, match="channel 3"):
        derive(host, call, image, hole, None)


def test_what_an_activation_overwrites_is_copied_and_the_adapter_taps_what_it_puts_out(host, batch):
    planned = plan(host, *batch, stages=["encoder.2", "encoder.3"])
    assert [stage.clone for stage in planned.stages] == [True, False]
    assert not any(stage.clone for stage in plan(host, *batch).stages)
    taps = FeatureTaps(host, planned.stages)
    taps.begin()
    adapters.get("edge-connect").call(host, *batch)
    normalised, activated = taps.take()
    assert normalised.min() < 0
    assert torch.equal(normalised.clamp(min=0), activated)


def test_trains_with_drawn_edges_and_is_left_as_it_was(host, batch):
    image, hole = batch
    edges = (random(2, 1, 32, 32, seed=1) > 0.9).float()
    before = list(host.state_dict())
    optimizer = torch.optim.Adam(host.parameters(), lr=1e-3)
    distiller = inpaint_distill.attach(host, optimizer, config={"warmup": 0})
    for _ in range(3):
        restored = host(torch.cat([white(image, hole), edges], dim=1)) * 2 - 1
        loss = (restored - image).abs().mean() + distiller.loss(image, hole)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert loss.isfinite()
    assert [stage.name for stage in distiller.plan.stages] == ["encoder.3", "encoder.6", "encoder.9"]
    assert list(distiller.detach().state_dict()) == before


def test_completion_blocks_are_refused_for_want_of_a_mask(host, batch):
    image, hole = batch
    before = list(host.state_dict())
    optimizer = torch.optim.Adam(host.parameters())
    distiller = inpaint_distill.attach(host, optimizer, image=image, mask=hole, completion=True)
    host(torch.cat([white(image, hole), torch.zeros_like(hole)], dim=1))
    with pytest.raises(PlanError, match="no argument of the host's call carries the mask"):
        distiller.loss(image, hole)
    assert list(host.state_dict()) == before


def test_a_wrong_setting_or_shape_is_explained(host):
    with pytest.raises(ConfigError, match="blocks=0"):
        EdgeConnectGenerator(blocks=0)
    for shape in ((1, 3, 32, 32), (1, 4, 32, 30), (1, 4, 8, 32)):
        with pytest.raises(InputError, match="multiples of 4"):
            host(torch.zeros(shape))
