"""Filling by interpolation: what is known stays, what is not known is not read, and nothing is made up."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inpaint_distill.networks.fill import pull_push

SIZES = st.tuples(st.integers(1, 17), st.integers(1, 17))


def drawn(size, seed, share=0.5, batch=2, channels=3):
    """Return a feature and what is known of it: whole pixels, at least one in each."""
    generator = torch.Generator().manual_seed(seed)
    feature = torch.randn(batch, channels, *size, generator=generator, dtype=torch.float64)
    known = (torch.rand(batch, 1, *size, generator=generator) < share).double()
    known[..., 0, 0] = 1
    return feature, known


def laplace(feature, known):
    """Solve Laplace's equation in the unknown pixels by relaxation; nothing flows through the border."""
    filled = feature * known
    for _ in range(2000):
        padded = torch.nn.functional.pad(filled, (1, 1, 1, 1), mode="replicate")
        mean = (padded[..., 1:-1, 2:] + padded[..., 1:-1, :-2] + padded[..., 2:, 1:-1] + padded[..., :-2, 1:-1]) / 4
        filled = feature * known + mean * (1 - known)
    return filled


@settings(max_examples=50)
@given(size=SIZES, seed=st.integers(0, 99))
def test_the_known_stays_and_the_unknown_is_not_read(size, seed):
    feature, known = drawn(size, seed)
    filled = pull_push(feature, known)
    there = known.expand_as(feature) > 0
    torch.testing.assert_close(filled[there], feature[there])
    assert torch.equal(pull_push(torch.where(there, feature, torch.nan), known), filled)


@settings(max_examples=50)
@given(size=SIZES, seed=st.integers(0, 99))
def test_nothing_is_below_the_least_or_above_the_greatest_that_is_known(size, seed):
    feature, known = drawn(size, seed, share=0.1)
    filled = pull_push(feature, known)
    least = feature.where(known > 0, torch.inf).amin((2, 3), keepdim=True)
    greatest = feature.where(known > 0, -torch.inf).amax((2, 3), keepdim=True)
    assert bool((filled >= least - 1e-9).all())
    assert bool((filled <= greatest + 1e-9).all())


@settings(max_examples=25)
@given(size=SIZES, seed=st.integers(0, 99))
def test_it_is_linear_and_each_channel_is_filled_by_itself(size, seed):
    feature, known = drawn(size, seed)
    filled = pull_push(feature, known)
    torch.testing.assert_close(pull_push(3 * feature + 2, known), 3 * filled + 2)
    torch.testing.assert_close(pull_push(feature[:, 1:2], known), filled[:, 1:2])
    torch.testing.assert_close(pull_push(feature[1:], known[1:]), filled[1:])


@pytest.mark.parametrize("size", [(8, 8), (16, 4), (1, 32)])
def test_a_mirrored_feature_is_filled_by_the_mirrored_pixels(size):
    feature, known = drawn(size, 0)
    expected = pull_push(feature, known).flip(2, 3)
    torch.testing.assert_close(pull_push(feature.flip(2, 3), known.flip(2, 3)), expected)


def test_a_pixel_that_is_known_in_part_is_a_mixture():
    feature = torch.tensor([[[[0.0, 4.0, 0.0, 0.0]]]])
    known = torch.tensor([[[[1.0, 0.25, 1.0, 1.0]]]])
    assert 0.25 * 4 < pull_push(feature, known)[0, 0, 0, 1] < 4


@pytest.mark.parametrize("share", [0, 1e-30, 1e-6, 1])
def test_nothing_known_is_zero_and_gradients_are_finite_however_little_is(share):
    feature = torch.randn(1, 2, 6, 5, requires_grad=True)
    filled = pull_push(feature, torch.full((1, 1, 6, 5), share))
    assert filled.isfinite().all()
    assert bool(filled.any()) == (share > 0)
    (gradient,) = torch.autograd.grad(filled.sum(), feature)
    assert gradient.isfinite().all()


def test_a_large_hole_is_filled_nearly_as_by_laplaces_equation():
    feature, _ = drawn((32, 32), 0, batch=1)
    feature = torch.nn.functional.avg_pool2d(feature, 9, 1, 4)
    known = torch.ones(1, 1, 32, 32, dtype=torch.float64)
    known[..., 6:24, 9:29] = 0
    exact = laplace(feature, known)
    hole = (known == 0).expand_as(exact)
    apart = (pull_push(feature, known) - exact)[hole].square().mean()
    mean = (feature * known).sum((2, 3), keepdim=True) / known.sum((2, 3), keepdim=True)
    assert apart < 0.1 * (mean - exact)[hole].square().mean()
