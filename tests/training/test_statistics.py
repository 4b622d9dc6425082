import math

import pytest

from inpaint_distill.errors import InputError
from inpaint_distill.training.statistics import Interval, paired_interval, sentence, student_quantile, verdict

# Two-sided 95% and 99% points as printed in statistics books.
TABLE = {
    1: (12.706, 63.657),
    2: (4.303, 9.925),
    3: (3.182, 5.841),
    5: (2.571, 4.032),
    10: (2.228, 3.169),
    30: (2.042, 2.750),
}


@pytest.mark.parametrize("freedom", TABLE)
def test_quantiles_are_those_of_the_table(freedom):
    quantiles = (student_quantile(0.975, freedom), student_quantile(0.995, freedom))
    assert quantiles == pytest.approx(TABLE[freedom], abs=6e-4)


def test_quantiles_agree_with_scipy():
    distribution = pytest.importorskip("scipy.stats").t
    for freedom in (*range(1, 31), 99, 1000):
        for probability in (1e-4, 0.2, 0.5, 0.7, 0.95, 0.975, 0.9995):
            expected = distribution.ppf(probability, freedom)
            assert student_quantile(probability, freedom) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_one_degree_of_freedom_is_cauchy():
    for probability in (0.1, 0.6, 0.9, 0.999):
        assert student_quantile(probability, 1) == pytest.approx(math.tan(math.pi * (probability - 0.5)))


def test_many_degrees_of_freedom_are_normal():
    assert student_quantile(0.975, 20_000) == pytest.approx(1.95996, abs=2e-4)


@pytest.mark.parametrize(("probability", "freedom"), [(0.0, 3), (1.0, 3), (0.5, 0)])
def test_undefined_quantiles_are_errors(probability, freedom):
    with pytest.raises(InputError, match="not defined"):
        student_quantile(probability, freedom)


def test_interval_agrees_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    first, second = [17.0, 17.4, 16.1, 18.0], [17.3, 17.3, 16.8, 18.2]
    interval = paired_interval(first, second, confidence=0.9)
    expected = stats.ttest_rel(second, first).confidence_interval(0.9)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))
    assert interval.mean == pytest.approx(0.275)
    assert (interval.pairs, interval.confidence) == (4, 0.9)


def test_the_sign_is_second_minus_first_and_swapping_mirrors():
    first, second = [1.0, 2.0, 3.0], [1.5, 2.1, 3.4]
    forward, backward = paired_interval(first, second), paired_interval(second, first)
    assert forward.mean > 0
    assert (backward.low, backward.high) == pytest.approx((-forward.high, -forward.low))


def test_a_common_offset_of_a_pair_cancels():
    interval = paired_interval([0.0, 100.0, -50.0], [1.0, 101.0, -49.0])
    assert (interval.mean, interval.low, interval.high) == (1, 1, 1)


def test_one_pair_has_no_interval():
    interval = paired_interval([1.0], [3.0])
    assert interval.mean == 2
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)
    assert verdict(interval) == "not shown"
    assert "shows nothing about chance" in sentence(interval, "hole PSNR")


@pytest.mark.parametrize(("first", "second"), [([], []), ([1.0], [1.0, 2.0])])
def test_values_that_do_not_pair_are_errors(first, second):
    with pytest.raises(InputError, match="one value of each per pair"):
        paired_interval(first, second)


@pytest.mark.parametrize(
    ("bounds", "word", "start"),
    [
        ((0.01, 0.5), "gain", "Distillation raises"),
        ((-0.5, -0.01), "loss", "Distillation lowers"),
        ((-0.1, 0.5), "not shown", "No effect of distillation on"),
        ((0.0, 0.0), "not shown", "No effect of distillation on"),
    ],
)
def test_the_verdict_asks_for_the_whole_interval(bounds, word, start):
    interval = Interval(sum(bounds) / 2, *bounds, pairs=3)
    assert verdict(interval) == word
    assert sentence(interval, "hole PSNR").startswith(start)
