"""AOT-GAN's block against a plain re-statement, its white holes, its activations in place."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from inpaint_distill import adapters
from inpaint_distill.adapters.aot_gan import AOTGenerator
from inpaint_distill.adapters.aot_gan.layers import AOTBlock
from inpaint_distill.errors import ConfigError, InputError
from inpaint_distill.host.taps import FeatureTaps
from inpaint_distill.plan import plan


def random(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def host():
    torch.manual_seed(0)
    return AOTGenerator(width=4, blocks=1)


@pytest.fixture
def batch():
    """Return images in [-1, 1] and their holes."""
    hole = torch.zeros(2, 1, 32, 32)
    hole[:, :, 6:17, 5:22] = 1
    return random(2, 3, 32, 32) * 2 - 1, hole


@pytest.mark.parametrize("rates", [(1, 2, 4), (3,), (1, 2, 4, 8, 2, 1)])
def test_block_splits_transforms_aggregates_and_weighs_against_its_input(rates):
    torch.manual_seed(0)
    block = AOTBlock(6, rates).double()
    x = random(2, 6, 7, 9).double() - 0.5
    seen = []
    for rate, branch in zip(rates, block.branches, strict=True):
        padded = F.pad(x, (rate,) * 4)
        total = branch[0].bias.view(1, -1, 1, 1)
        for row in range(3):
            for column in range(3):
                window = padded[:, :, row * rate : row * rate + 7, column * rate : column * rate + 9]
                total = total + torch.einsum("oc,bchw->bohw", branch[0].weight[:, :, row, column], window)
        seen.append(total.clamp(min=0))
    fused = F.conv2d(torch.cat(seen, dim=1), block.fuse.weight, block.fuse.bias, padding=1)
    gate = 1 / (1 + (-F.conv2d(x, block.gate.weight, block.gate.bias, padding=1)).exp())
    torch.testing.assert_close(block(x), x * gate + fused * (1 - gate))


def test_an_open_gate_lets_the_input_through_and_a_closed_one_replaces_it():
    block = AOTBlock(4, (1, 2))
    x = random(1, 4, 8, 8)
    torch.nn.init.constant_(block.gate.bias, 1e4)
    assert torch.equal(block(x), x)
    torch.nn.init.constant_(block.gate.bias, -1e4)
    assert torch.equal(block(x), block.fuse(torch.cat([branch(x) for branch in block.branches], dim=1)))


def test_a_fresh_network_of_the_papers_depth_still_answers_to_its_input(batch):
    torch.manual_seed(0)
    image, hole = batch
    with torch.no_grad():
        restored = AOTGenerator(width=16)(image, hole)
    assert restored.std() > 0.01
    assert (restored[0] - restored[1]).abs().mean() > 0.001


def test_the_host_sees_white_holes_and_the_mask_as_a_second_argument(host, batch):
    image, hole = batch
    seen = []
    host.register_forward_pre_hook(lambda module, args: seen.append(args))
    adapters.get("aot-gan").call(host, image, hole)
    painted, mask = seen[0]
    assert torch.equal(painted, torch.where(hole > 0, torch.ones_like(image), image))
    assert torch.equal(mask, hole)


def test_what_an_activation_overwrites_is_copied_and_the_adapter_taps_what_it_puts_out(host, batch):
    planned = plan(host, *batch, stages=["encoder.1", "encoder.2"])
    assert [stage.clone for stage in planned.stages] == [True, False]
    assert not any(stage.clone for stage in plan(host, *batch).stages)
    taps = FeatureTaps(host, planned.stages)
    taps.begin()
    adapters.get("aot-gan").call(host, *batch)
    convolved, activated = taps.take()
    assert convolved.min() < 0
    assert torch.equal(convolved.clamp(min=0), activated)


def test_the_gate_is_no_attention(host, batch):
    assert plan(host, *batch).attention == ()


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"width": 0}, "width=0"),
        ({"blocks": 0}, "blocks=0"),
        ({"rates": (1, 0)}, "below 1"),
        ({"rates": ()}, "0 branches"),
        ({"width": 4, "rates": (1, 2, 4)}, "16 channels for 3 branches"),
    ],
)
def test_a_wrong_setting_is_explained(settings, found):
    with pytest.raises(ConfigError, match=found):
        AOTGenerator(**settings)


def test_a_wrong_size_is_explained(host):
    with pytest.raises(InputError, match="multiples of 4"):
        host(torch.zeros(1, 3, 32, 30), torch.zeros(1, 1, 32, 30))
