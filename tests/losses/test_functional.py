"""Masked distance, hole weight and normalisation against float64 loops, and their exact zeros."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inpaint_distill.losses.functional import channel_moments, hole_weight, masked_distance, normalize
from inpaint_distill.losses.schedule import schedule


def distance_loop(student, target, weight, channel_weight=None):
    batch, channels, height, width = student.shape
    total = area = 0.0
    for b in range(batch):
        for y in range(height):
            for x in range(width):
                m = float(weight[b, 0, y, x])
                area += m
                for c in range(channels):
                    share = 1 / channels if channel_weight is None else float(channel_weight[b, c])
                    total += m * share * float(target[b, c, y, x] - student[b, c, y, x]) ** 2
    return total / area if area else 0.0


shapes = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.integers(1, 5))


@given(shapes, st.booleans(), st.integers(0, 999))
def test_masked_distance_equals_the_loop(shape, weighted, seed):
    generator = torch.Generator().manual_seed(seed)
    student, target = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    weight = torch.rand(shape[0], 1, *shape[2:], generator=generator, dtype=torch.float64)
    weight[weight < 0.4] = 0
    channel_weight = torch.rand(shape[:2], generator=generator, dtype=torch.float64) if weighted else None
    found = masked_distance(student, target, weight, channel_weight)
    assert float(found) == pytest.approx(distance_loop(student, target, weight, channel_weight), rel=1e-9, abs=1e-12)


def test_uniform_channel_weights_are_the_default():
    student, target = torch.randn(2, 2, 5, 4, 4, dtype=torch.float64)
    weight = torch.rand(2, 1, 4, 4, dtype=torch.float64)
    uniform = torch.full((2, 5), 1 / 5, dtype=torch.float64)
    torch.testing.assert_close(
        masked_distance(student, target, weight, uniform), masked_distance(student, target, weight)
    )


def test_an_empty_hole_is_exactly_zero_and_has_no_gradient():
    student = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = masked_distance(student, torch.randn(2, 3, 4, 4), torch.zeros(2, 1, 4, 4))
    loss.backward()
    assert loss == 0
    assert not student.grad.any()


@pytest.mark.parametrize("share", [1e-3, 0.1, 1.0])
def test_the_area_of_the_hole_does_not_change_the_scale(share):
    student, target = torch.zeros(1, 3, 64, 64), torch.full((1, 3, 64, 64), 2.0)
    weight = torch.zeros(1, 1, 64, 64)
    weight.view(-1)[: max(1, int(share * 4096))] = 1
    torch.testing.assert_close(masked_distance(student, target, weight), torch.tensor(4.0))


# -- hole weight -------------------------------------------------------------------------------------------------------


@given(st.sampled_from([(8, 8), (4, 4), (2, 8), (1, 1), (16, 16)]), st.integers(0, 99))
def test_a_hole_weight_is_the_share_of_hole_in_each_cell(size, seed):
    mask = (torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(seed)) > 0.7).double()
    found = hole_weight(mask, size)
    rows, columns = 16 // size[0], 16 // size[1]
    for b in range(2):
        for y in range(size[0]):
            for x in range(size[1]):
                cell = mask[b, 0, y * rows : (y + 1) * rows, x * columns : (x + 1) * columns]
                assert float(found[b, 0, y, x]) == pytest.approx(float(cell.mean()), abs=1e-6)


@given(st.integers(1, 16), st.integers(1, 16), st.integers(0, 15), st.integers(0, 15))
def test_a_single_pixel_never_vanishes_at_any_size(height, width, top, left):
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., top, left] = 1
    found = hole_weight(mask, (height, width))
    assert found.max() > 0
    assert found.shape == (1, 1, height, width)
    assert 0 <= found.min() <= found.max() <= 1


# -- normalisation -----------------------------------------------------------------------------------------------------


def tensors(*shape, seed=0, scale=1.0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * scale


def test_without_normalisation_the_feature_is_itself():
    feature = tensors(2, 3, 4, 4)
    assert normalize(feature, tensors(2, 3, 4, 4, seed=1), "none") is feature


def test_channels_of_like_variance_get_mean_zero_and_like_variance():
    reference = tensors(4, 6, 9, 9) + torch.arange(6).view(1, 6, 1, 1)
    found = normalize(reference, reference, "channel")
    torch.testing.assert_close(found.mean((0, 2, 3)), torch.zeros(6, dtype=torch.float64), atol=1e-9, rtol=0)
    deviation = found.std((0, 2, 3), correction=0)
    assert bool(((deviation > 0.9) & (deviation <= 1.0)).all())


def test_the_statistics_are_the_references_and_take_no_gradient():
    feature, reference = tensors(2, 3, 4, 4).requires_grad_(), tensors(2, 3, 5, 5, seed=1).requires_grad_()
    normalize(feature, reference, "channel").square().sum().backward()
    assert reference.grad is None
    found = normalize(feature.detach(), reference.detach(), "channel")
    slope = (found[0, :, 0, 0] - found[0, :, 0, 1]) / (feature[0, :, 0, 0] - feature[0, :, 0, 1]).detach()
    again = normalize(feature.detach() * 3 + 1, reference.detach(), "channel")
    torch.testing.assert_close(again, found * 3 + (again - found * 3)[..., :1, :1])
    assert bool((slope > 0).all())


@given(st.floats(1e-3, 1e3), st.floats(-5, 5))
def test_a_common_scale_and_shift_of_both_sides_changes_nothing(scale, shift):
    feature, reference = tensors(2, 3, 6, 6), tensors(2, 3, 6, 6, seed=1)
    before = normalize(feature, reference, "channel")
    after = normalize(feature * scale + shift, reference * scale + shift, "channel")
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3)


def test_a_channel_that_does_not_vary_is_not_blown_up():
    reference = tensors(2, 4, 6, 6)
    reference[:, 2] = 0.7  # a dead activation
    feature = tensors(2, 4, 6, 6, seed=1)
    found = normalize(feature, reference, "channel")
    assert torch.isfinite(found).all()
    assert found[:, 2].abs().max() < 20


def test_a_feature_that_varies_nowhere_stays_finite():
    constant = torch.zeros(2, 4, 6, 6)
    assert torch.isfinite(normalize(constant, constant, "channel")).all()
    assert torch.isfinite(normalize(constant, constant, "layer")).all()


def test_layer_normalisation_is_per_pixel_over_the_channels():
    feature = tensors(2, 5, 3, 4)
    found = normalize(feature, feature, "layer")
    for b in range(2):
        for y in range(3):
            for x in range(4):
                column = feature[b, :, y, x]
                mean = column.mean()
                variance = ((column - mean) ** 2).mean()
                torch.testing.assert_close(found[b, :, y, x], (column - mean) / math.sqrt(variance + 1e-5))


def test_channel_normalisation_is_by_the_references_moments_with_a_tenth_of_the_mean_variance_as_floor():
    feature, reference = tensors(2, 3, 4, 4), tensors(3, 3, 5, 2, seed=1) * torch.tensor([1.0, 5.0, 0.1]).view(3, 1, 1)
    mean = reference.mean((0, 2, 3)).view(1, 3, 1, 1)
    variance = (reference - mean).square().mean((0, 2, 3)).view(1, 3, 1, 1)
    wanted = (feature - mean) / (variance + 0.1 * variance.sum() / 3).sqrt()
    torch.testing.assert_close(normalize(feature, reference, "channel"), wanted)
    found = channel_moments(reference)
    torch.testing.assert_close(found, (variance, mean))
    known = (torch.full_like(variance, 4.0), torch.ones_like(mean))
    torch.testing.assert_close(normalize(feature, reference, "channel", known), (feature - 1) / 4.4**0.5)


def test_moments_and_normalised_references_hold_no_graph():
    reference = tensors(2, 3, 4, 4).requires_grad_()
    assert not any(each.requires_grad for each in channel_moments(reference))


# -- schedule ----------------------------------------------------------------------------------------------------------


@given(
    st.integers(0, 300), st.integers(0, 100), st.one_of(st.none(), st.tuples(st.integers(0, 99), st.integers(1, 99)))
)
def test_a_schedule_is_a_linear_rise_times_a_cosine_fall(step, warmup, span):
    decay = None if span is None else (span[0], span[0] + span[1])
    rise = 1.0 if step + 1 >= warmup else (step + 1) / warmup
    if decay is None or step <= decay[0]:
        fall = 1.0
    elif step >= decay[1]:
        fall = 0.0
    else:
        fall = math.cos(math.pi / 2 * (step - decay[0]) / (decay[1] - decay[0])) ** 2
    assert schedule(step, warmup, decay) == pytest.approx(rise * fall, abs=1e-12)


def test_a_decayed_schedule_is_exactly_zero_at_its_end_and_after():
    assert schedule(20, 0, (10, 20)) == 0
    assert schedule(999, 5, (10, 20)) == 0
    assert schedule(19, 0, (10, 20)) > 0


@pytest.mark.parametrize(
    ("warmup", "decay", "wanted"),
    [
        (0, None, [1, 1, 1, 1, 1, 1]),
        (1, None, [1, 1, 1, 1, 1, 1]),
        (4, None, [0.25, 0.5, 0.75, 1, 1, 1]),
        (0, (1, 3), [1, 1, 0.5, 0, 0, 0]),
        (4, (0, 4), [0.25, 0.5 * (0.5 + 0.5**1.5), 0.375, 0.5 - 0.5**1.5, 0, 0]),
    ],
)
def test_warm_up_and_decay_begin_and_end_at_their_own_steps(warmup, decay, wanted):
    assert [schedule(step, warmup, decay) for step in range(6)] == pytest.approx(wanted)


def test_a_mask_of_integers_has_shares_too():
    mask = torch.tensor([[1, 0], [1, 1]]).view(1, 1, 2, 2)
    assert hole_weight(mask, (1, 1)).item() == 0.75
    assert hole_weight(mask, (1, 2)).flatten().tolist() == [1.0, 0.5]
