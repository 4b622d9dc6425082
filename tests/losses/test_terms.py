"""Cross- and self-distillation: hole only, zero on agreement, and which side takes the gradient."""

import itertools

import pytest
import torch
from hosts import batch
from torch import nn

from inpaint_distill.config import TermConfig
from inpaint_distill.errors import ConfigError
from inpaint_distill.host.stage import Stage
from inpaint_distill.losses.cross import CrossDistillation
from inpaint_distill.losses.functional import hole_weight
from inpaint_distill.losses.self_distillation import SelfDistillation

CHANNELS = (8, 12, 16)


def stages(channels=CHANNELS, first=1):
    return [Stage(name=f"enc{i}", channels=c, stride=first * 2**i) for i, c in enumerate(channels)]


def features(channels=CHANNELS, first=1, seed=0, size=32):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(2, c, size // (first * 2**i), size // (first * 2**i), generator=generator).requires_grad_()
        for i, c in enumerate(channels)
    ]


def settings(**kwargs):
    return TermConfig(weight=1.0, **kwargs)


def distance(student, target, mask):
    """Compute the plain distance of one level in float64."""
    weight = hole_weight(mask.double(), target.shape[2:])
    squared = (target.double() - student.double()).square().mean(1, keepdim=True)
    return (weight * squared).sum() / weight.sum()


@pytest.fixture
def mask():
    return batch()[1]


# -- cross -------------------------------------------------------------------------------------------------------------


def test_cross_is_the_sum_over_the_levels(mask):
    term = CrossDistillation(settings(normalize="none"), stages(), stages(), predictor=False)
    student, teacher = features(), features(seed=1)
    expected = sum(distance(s, t, mask) for s, t in zip(student, teacher, strict=True))
    torch.testing.assert_close(term(student, teacher, mask).sum().double(), expected)
    assert not list(term.parameters())


@pytest.mark.parametrize("normalize", ["none", "channel", "layer"])
@pytest.mark.parametrize("predictor", [False, True])
def test_cross_is_zero_where_student_and_teacher_agree(mask, normalize, predictor):
    term = CrossDistillation(settings(normalize=normalize), stages(), stages(), predictor=predictor)
    student = features()
    loss = term(student, [each.detach().clone() for each in student], mask).sum()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("normalize", ["none", "channel", "layer"])
def test_cross_touches_no_known_pixel_and_no_teacher(mask, normalize):
    term = CrossDistillation(settings(normalize=normalize), stages(), stages())
    student, teacher = features(), features(seed=1)
    term(student, teacher, mask).sum().backward()
    for own, other in zip(student, teacher, strict=True):
        hole = (hole_weight(mask, own.shape[2:]) > 0).expand_as(own)
        assert not own.grad[~hole].any()
        assert own.grad[hole].abs().min() > 0 or own.grad[hole].count_nonzero() > 0.99 * hole.sum()
        assert other.grad is None


def test_cross_everywhere_touches_every_pixel(mask):
    term = CrossDistillation(settings(normalize="none", region="all"), stages(), stages())
    student = features()
    term(student, features(seed=1), mask).sum().backward()
    assert all(bool(each.grad.abs().sum(1).gt(0).all()) for each in student)


@pytest.mark.parametrize("factor", [1e-2, 1e2])
def test_a_common_scale_does_not_change_cross_under_channel_normalisation(mask, factor):
    term = CrossDistillation(settings(), stages(), stages(), predictor=False)
    student, teacher = features(), features(seed=1)
    scaled = term([each * factor for each in student], [each * factor for each in teacher], mask).sum()
    torch.testing.assert_close(scaled, term(student, teacher, mask).sum(), rtol=1e-3, atol=1e-4)


def test_a_teacher_of_other_channels_and_sizes_is_met_by_a_predictor(mask):
    other = (5, 7, 9)
    term = CrossDistillation(settings(), stages(), stages(other, first=2), predictor=False)
    student = features()
    loss = term(student, features(other, first=2, seed=1), mask).sum()
    loss.backward()
    assert torch.isfinite(loss)
    assert [predictor.conv.weight.shape[:2] for predictor in term.predictors] == [(5, 8), (7, 12), (9, 16)]
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in term.parameters())


def test_a_predictor_starts_as_the_identity(mask):
    student, teacher = features(), features(seed=1)
    values = [CrossDistillation(settings(), stages(), stages(), predictor=p)(student, teacher, mask) for p in (0, 1)]
    torch.testing.assert_close(values[0], values[1])


# -- self --------------------------------------------------------------------------------------------------------------


def test_self_compares_each_level_with_the_next_deeper_one(mask):
    term = SelfDistillation(settings(normalize="none"), stages())
    student = features()
    expected = sum(
        distance(f.conv(shallow), deep, mask)
        for f, shallow, deep in zip(term.projections, student, student[1:], strict=False)
    )
    torch.testing.assert_close(term(student, [], mask).sum().double(), expected, rtol=1e-5, atol=1e-6)
    assert [f.conv.stride for f in term.projections] == [(2, 2), (2, 2)]


@pytest.mark.parametrize("normalize", ["none", "channel"])
def test_self_pulls_the_shallow_side_alone_and_only_what_the_hole_sees(mask, normalize):
    term = SelfDistillation(settings(normalize=normalize), stages())
    student = features()
    term(student, [], mask).sum().backward()
    assert student[-1].grad is None
    for shallow, deep in itertools.pairwise(student):
        # The 3x3 kernel of f_l reads one shallow pixel around each deep cell of the hole.
        hole = (hole_weight(mask, deep.shape[2:]) > 0).float()
        read = nn.functional.interpolate(hole, shallow.shape[2:], mode="nearest")
        read = nn.functional.max_pool2d(read, 3, 1, 1).bool().expand_as(shallow)
        assert not shallow.grad[~read].any()
        assert shallow.grad[read].any()


def test_self_is_zero_where_the_projection_is_exact(mask):
    term = SelfDistillation(settings(), stages())
    shallow = features()[0]
    levels = [shallow]
    for projection in term.projections:
        levels.append(projection.conv(levels[-1]))
    loss = term([each.detach() for each in levels], [], mask).sum()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-9)


def test_self_between_equal_resolutions_uses_a_1x1_kernel():
    term = SelfDistillation(settings(), [Stage(name="a", channels=4, stride=4), Stage(name="b", channels=6, stride=4)])
    assert term.projections[0].conv.kernel_size == (1, 1)


def test_self_of_odd_sizes_is_brought_to_the_deep_one(mask):
    term = SelfDistillation(settings(), stages((8, 12)))
    loss = term([torch.randn(2, 8, 31, 31), torch.randn(2, 12, 15, 15)], [], mask).sum()
    assert torch.isfinite(loss)


@pytest.mark.parametrize("count", [0, 1])
def test_self_of_less_than_two_levels_is_an_error(count):
    with pytest.raises(ConfigError, match="two stages"):
        SelfDistillation(settings(), stages()[:count])


def test_a_term_is_zero_with_an_empty_hole(mask):
    empty = torch.zeros_like(mask)
    assert not CrossDistillation(settings(), stages(), stages())(features(), features(seed=1), empty).any()
    assert not SelfDistillation(settings(), stages())(features(), [], empty).any()
