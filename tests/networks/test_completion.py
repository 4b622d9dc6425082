"""The completion block: the identity at its start, and never a change outside the hole."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from inpaint_distill.double_backward import double_backward
from inpaint_distill.errors import ConfigError
from inpaint_distill.networks.completion import CompletionBlock
from inpaint_distill.networks.fill import pull_push

FORMATS = [torch.contiguous_format, torch.channels_last]


ADAPTIVE = pytest.mark.parametrize("adaptive", [False, True], ids=["plain", "adaptive"])


def trained(channels, kernel_size=3, *, adaptive):
    """Return a block whose every parameter has left its start."""
    block = CompletionBlock(channels, kernel_size, adaptive=adaptive)
    for name, parameter in block.named_parameters():  # offsets in tenths: of about a pixel
        torch.nn.init.normal_(parameter, std=1.0 if name.startswith("offset") else 0.3)
    return block


def square_hole(batch, height, width):
    hole = torch.zeros(batch, 1, height, width)
    hole[..., height // 4 : height - height // 4, width // 4 : width - width // 4] = 1
    return hole


@settings(max_examples=25)
@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 6),
    kernel_size=st.sampled_from([1, 3, 5]),
    height=st.integers(1, 9),
    width=st.integers(2, 9),
    scale=st.sampled_from([1, 3, 8]),
    adaptive=st.booleans(),
)
def test_it_starts_as_the_identity_and_never_changes_a_known_pixel(
    batch, channels, kernel_size, height, width, scale, adaptive
):
    feature = torch.randn(batch, channels, height, width)
    hole = (torch.rand(batch, 1, height * scale, width * scale) < 0.3).float()
    assert torch.equal(CompletionBlock(channels, kernel_size, adaptive=adaptive)(feature, hole), feature)
    out = trained(channels, kernel_size, adaptive=adaptive)(feature, hole)
    known = F.adaptive_max_pool2d(hole, (height, width)).expand_as(feature) == 0
    assert torch.equal(out[known], feature[known])
    if not known.all():
        assert not torch.equal(out[~known], feature[~known])


@ADAPTIVE
def test_it_can_start_by_filling_the_hole_in_from_around_it(adaptive):
    feature, hole = torch.randn(2, 3, 16, 12), square_hole(2, 16, 12)
    block = CompletionBlock(3, adaptive=adaptive, interpolate=True)
    filled = pull_push(feature, 1 - hole)
    torch.testing.assert_close(block(feature, hole), filled)
    assert torch.equal(block(feature, torch.zeros_like(hole)), feature)
    other = CompletionBlock(3, adaptive=adaptive)
    for each in (block, other):
        torch.manual_seed(0)
        torch.nn.init.normal_(each.weight)
    other.load_state_dict(block.state_dict())
    difference = block(feature, hole) - other(feature, hole)
    torch.testing.assert_close(difference, filled - feature)


@ADAPTIVE
def test_value_is_that_of_the_formula(adaptive):
    from torchvision.ops import deform_conv2d

    block = trained(4, adaptive=adaptive).double()
    feature = torch.randn(2, 4, 7, 9, dtype=torch.float64)
    hole = square_hole(2, 28, 36).double()
    hole[..., :3, :3] = 1  # part of a cell
    share = F.avg_pool2d(hole, 4)
    if adaptive:
        seen = torch.cat([feature, share], 1)
        kernel = 2 * torch.sigmoid(F.conv2d(seen, block.kernel.weight, block.kernel.bias, padding=1))
        offset = F.conv2d(seen, block.offset.weight, block.offset.bias, padding=1) / 10
        filled = feature + deform_conv2d(feature, offset, block.weight, padding=1, mask=kernel)
    else:
        seen = torch.cat([feature, pull_push(feature, 1 - share), share], 1)
        hidden = F.silu(F.conv2d(seen, block.hidden.weight, block.hidden.bias, padding=1))
        filled = feature + F.conv2d(hidden, block.weight, padding=1)
    torch.testing.assert_close(block(feature, hole), feature * (1 - share) + filled * share)


@ADAPTIVE
def test_an_overflow_of_the_branch_stays_in_the_hole(adaptive):
    feature = torch.randn(1, 2, 6, 6)
    feature[..., 0, 0] = 1e38
    block = trained(2, adaptive=adaptive)
    torch.nn.init.constant_(block.weight, 1e3)
    hole = torch.zeros(1, 1, 6, 6)
    assert torch.equal(block(feature, hole), feature)
    hole[..., 5, 5] = 1
    out = block(feature, hole)
    assert torch.equal(out[..., :5, :], feature[..., :5, :])


@ADAPTIVE
def test_the_weight_learns_from_the_first_step_and_the_rest_from_the_second(adaptive):
    block = CompletionBlock(3, adaptive=adaptive)
    feature, target = torch.randn(2, 2, 3, 8, 8)
    optimizer = torch.optim.SGD(block.parameters(), lr=0.1)
    for step in range(2):
        optimizer.zero_grad()
        (block(feature, square_hole(2, 32, 32)) - target).square().mean().backward()
        for name, parameter in block.named_parameters():
            assert parameter.grad.isfinite().all()
            assert bool(parameter.grad.any()) == (step == 1 or name == "weight")
        optimizer.step()


@ADAPTIVE
def test_the_gradient_of_a_known_pixel_passes_as_it_came(adaptive):
    feature = torch.randn(1, 3, 6, 6, requires_grad=True)
    out = trained(3, adaptive=adaptive)(feature, torch.zeros(1, 1, 24, 24))
    seed = torch.randn_like(out)
    assert torch.equal(torch.autograd.grad(out, feature, seed)[0], seed)


@ADAPTIVE
def test_it_can_be_differentiated_twice(adaptive):
    block = trained(2, 1, adaptive=adaptive).double()
    feature = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    names, parameters = zip(*block.named_parameters(), strict=True)

    def call(feature, *parameters):
        state = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(block, state, (feature, square_hole(1, 6, 6)))

    with double_backward():
        assert torch.autograd.gradcheck(call, (feature, *parameters))
        assert torch.autograd.gradgradcheck(call, (feature, *parameters))


@ADAPTIVE
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_under_autocast_it_computes_in_float32_and_answers_in_the_features_dtype(dtype, adaptive):
    block = trained(3, adaptive=adaptive)
    feature, hole = torch.randn(2, 3, 7, 5).to(dtype), square_hole(2, 14, 10)
    expected = block(feature.float(), hole).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        out = block(feature, hole)
    assert out.dtype == dtype
    assert torch.equal(out, expected)


@ADAPTIVE
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_host_cast_to_half_precision_keeps_working(dtype, adaptive):
    block = CompletionBlock(3, adaptive=adaptive).to(dtype)
    feature, hole = torch.randn(2, 3, 6, 6).to(dtype), square_hole(2, 12, 12).to(dtype)
    assert torch.equal(block(feature, hole), feature)
    block = trained(3, adaptive=adaptive)
    out = copy.deepcopy(block).to(dtype)(feature, hole)
    torch.testing.assert_close(out, block(feature, hole), rtol=0.1, atol=0.1)


@ADAPTIVE
@pytest.mark.parametrize("memory_format", FORMATS)
def test_the_memory_format_is_the_features(memory_format, adaptive):
    block = trained(4, adaptive=adaptive)
    feature, hole = torch.randn(2, 4, 7, 5), square_hole(2, 14, 10)
    out = block(feature.to(memory_format=memory_format), hole)
    assert out.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(out, block(feature, hole))


@ADAPTIVE
def test_copies_and_pickles_compute_the_same(adaptive):
    block = trained(3, adaptive=adaptive)
    feature, hole = torch.randn(1, 3, 5, 5), square_hole(1, 10, 10)
    for other in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        assert torch.equal(other(feature, hole), block(feature, hole))


@pytest.mark.parametrize(
    "settings", [{"channels": 0}, {"channels": 3, "kernel_size": 2}, {"channels": 3, "kernel_size": -1}]
)
def test_impossible_settings_are_refused(settings):
    name, value = list(settings.items())[-1]
    with pytest.raises(ConfigError, match=f"{name}={value}"):
        CompletionBlock(**settings)


def test_a_single_pixel_is_refused_when_planned_and_when_met():
    with pytest.raises(ConfigError, match="1x1"):
        CompletionBlock.check_size((1, 1))
    with pytest.raises(ConfigError, match="1x1"):
        CompletionBlock(2)(torch.randn(3, 2, 1, 1), torch.ones(3, 1, 8, 8))
    CompletionBlock.check_size((1, 2))
