"""Spread, paired differences and time to a loss, against values worked out by hand or by numpy."""

import math

import numpy as np
import pytest

from fastffn_cli.comparison.statistics import (
    Spread,
    margin,
    seconds_to_loss,
    seeds_needed,
    spread,
    student_t,
)


def test_spread_of_paired_differences():
    baseline, arm = [3.0, 3.2, 3.1], [2.9, 3.15, 2.95]
    sample = spread([b - a for a, b in zip(baseline, arm, strict=True)])
    # -0.1, -0.05, -0.15: mean -0.1, deviation 0.05, error 0.05 / sqrt(3)
    assert sample.count == 3
    assert sample.mean == pytest.approx(-0.1)
    assert sample.deviation == pytest.approx(0.05)
    assert sample.error == pytest.approx(0.0288675, abs=1e-6)


def test_spread_agrees_with_numpy():
    values = np.random.default_rng(5).normal(3.0, 0.1, 11)
    sample = spread(values.tolist())
    assert sample.mean == pytest.approx(values.mean(), rel=1e-12)
    assert sample.deviation == pytest.approx(values.std(ddof=1), rel=1e-12)
    assert sample.error == pytest.approx(values.std(ddof=1) / math.sqrt(11), rel=1e-12)


def test_a_single_value_has_no_spread():
    assert spread([2.5]) == Spread(1, 2.5, None, None)
    assert margin(spread([2.5])) is None
    assert seeds_needed(spread([2.5]), 1.0) is None


def test_no_values_are_an_error():
    with pytest.raises(ValueError, match="no values"):
        spread([])


@pytest.mark.parametrize(
    ("probability", "freedom", "expected"),
    [
        (0.975, 1, 12.7062),
        (0.975, 2, 4.3027),
        (0.975, 3, 3.1824),
        (0.975, 4, 2.7764),
        (0.975, 9, 2.2622),
        (0.975, 30, 2.0423),
        (0.995, 2, 9.9248),
        (0.95, 5, 2.0150),
        (0.975, 10_000, 1.9602),
        (0.5, 7, 0.0),
    ],
)
def test_student_t_is_that_of_the_printed_tables(probability, freedom, expected):
    assert student_t(probability, freedom) == pytest.approx(expected, abs=6e-5)


@pytest.mark.parametrize(("probability", "freedom"), [(0.4, 3), (1.0, 3), (0.9, 0)])
def test_student_t_refuses_what_it_cannot_answer(probability, freedom):
    with pytest.raises(ValueError, match="no quantile"):
        student_t(probability, freedom)


def test_margin_is_t_times_error_and_grows_with_the_number_of_comparisons():
    sample = Spread(3, 0.8, 0.05, 0.05 / math.sqrt(3))
    assert margin(sample) == pytest.approx(4.3027 * 0.05 / math.sqrt(3), rel=1e-4)
    assert margin(sample, 5) == pytest.approx(9.9248 * 0.05 / math.sqrt(3), rel=1e-4)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    draws = np.random.default_rng(11).normal(0.0, 1.0, (4000, 3))
    covered = [abs((one := spread(row)).mean) <= margin(one) for row in draws.tolist()]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.012)


def test_seeds_needed_is_the_first_count_whose_margin_is_small_enough():
    sample = spread([0.9, 1.0, 0.8, 0.95])
    needed = seeds_needed(sample, 1.0)
    distance = abs(sample.mean - 1.0)

    def margin_of(count):
        return student_t(0.975, count - 1) * sample.deviation / math.sqrt(count)

    assert margin_of(needed) < distance <= margin_of(needed - 1)


def test_no_number_of_seeds_is_named_where_nothing_differs():
    assert seeds_needed(Spread(4, 1.0, 0.1, 0.05), 1.0) is None


CURVE = [(10.0, 5.0), (20.0, 4.0), (30.0, 3.5), (40.0, 3.6), (50.0, 3.0)]


@pytest.mark.parametrize(
    ("target", "seconds"),
    [
        (4.0, 20.0),
        (4.5, 15.0),
        (3.75, 25.0),
        (3.5, 30.0),
        (3.3, 45.0),  # on the way down a second time: 3.6 at 40 s, 3.0 at 50 s
        (6.0, 10.0),
        (2.9, None),
    ],
)
def test_seconds_to_loss(target, seconds):
    found = seconds_to_loss(CURVE, target)
    assert found == (None if seconds is None else pytest.approx(seconds))


def test_an_empty_curve_reaches_nothing():
    assert seconds_to_loss([], 1.0) is None


def test_losses_that_are_no_numbers_are_left_out_of_the_curve():
    curve = [(1.0, 5.0), (2.0, float("nan")), (3.0, 3.0)]
    assert seconds_to_loss(curve[:2], 4.0) is None
    assert seconds_to_loss(curve, 4.0) == pytest.approx(2.0)
