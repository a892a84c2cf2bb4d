"""Throughput, with a clock in the test's hand."""

from __future__ import annotations

import pytest

from fastffn_cli.engine.meter import Meter


class Clock:
    """Time that passes only when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def step(meter: Meter, clock: Clock, *, reading: float, computing: float, tokens: int) -> None:
    meter.begin()
    clock.now += reading
    meter.data_ready()
    clock.now += computing
    meter.end(tokens)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_the_summary_leaves_out_the_first_step_and_all_time_between_steps(clock: Clock) -> None:
    meter = Meter(clock)
    step(meter, clock, reading=5.0, computing=45.0, tokens=100)
    assert meter.tokens_per_s is None
    clock.now += 1000.0  # evaluation
    step(meter, clock, reading=0.5, computing=1.5, tokens=100)
    clock.now += 2000.0  # a checkpoint
    step(meter, clock, reading=0.0, computing=2.0, tokens=300)
    assert meter.tokens_per_s == pytest.approx(400 / 4.0)


def test_a_window_averages_its_steps_and_starts_anew(clock: Clock) -> None:
    meter = Meter(clock)
    step(meter, clock, reading=1.0, computing=3.0, tokens=10)
    assert not meter.window().warm
    step(meter, clock, reading=0.5, computing=1.5, tokens=40)
    step(meter, clock, reading=0.0, computing=2.0, tokens=60)

    rates = meter.window()

    assert rates.warm
    assert rates.reader_s == pytest.approx(0.25)
    assert rates.step_s == pytest.approx(2.0)
    assert rates.steps_per_s == pytest.approx(0.5)
    assert rates.tokens_per_s == pytest.approx(100 / 4.0)
    assert meter.window().step_s == 0.0


def test_the_time_left_is_that_of_warm_steps(clock: Clock) -> None:
    meter = Meter(clock)
    assert meter.remaining_s(10) is None
    step(meter, clock, reading=0.0, computing=60.0, tokens=1)
    assert meter.remaining_s(10) is None
    step(meter, clock, reading=1.0, computing=2.0, tokens=1)
    assert meter.remaining_s(10) == pytest.approx(30.0)


def test_an_empty_window_has_no_speed(clock: Clock) -> None:
    rates = Meter(clock).window()
    assert (rates.steps_per_s, rates.tokens_per_s) == (0.0, 0.0)
