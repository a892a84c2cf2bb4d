"""When stage 1 ends: the criteria on curves whose best switch is known."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from fastffn_cli.config.load import load_config
from fastffn_cli.engine.loss_curve import MOST_POINTS, LossCurve
from fastffn_cli.engine.measured_criterion import Asking, Measured
from fastffn_cli.engine.switch_criteria import FEWEST_RATIOS, STALE, Blocked, Fork, Slope
from fastffn_cli.engine.switch_probes import DenseFork, GradientProbe
from fastffn_cli.engine.switching import Fraction
from tests.conftest import Workplace

FORK_STEPS = 20
ASKING = Asking(earliest=200, latest=6000, freq=100, patience=3)


@dataclass(frozen=True)
class Curve:
    """A loss floor + scale·(step + 1)^-power, an update of which takes so many seconds."""

    floor: float
    scale: float
    power: float
    step_s: float

    def loss(self, step: float) -> float:
        return self.floor + self.scale * (step + 1) ** -self.power

    def step_of(self, loss: float) -> float:
        return ((loss - self.floor) / self.scale) ** (-1 / self.power) - 1

    def slope(self, step: float) -> float:
        return self.scale * self.power * (step + 1) ** (-self.power - 1) / self.step_s


# Dense steps take twice as long and lead to a lower floor.
STAGE1 = Curve(floor=2.47, scale=6.0, power=0.4, step_s=0.1)
DENSE = Curve(floor=2.40, scale=6.0, power=0.4, step_s=0.2)


def best_switch() -> int:
    """The step at which stage 1 falls as fast a second as dense training at the same loss."""
    return next(
        step for step in range(1, 6000)
        if STAGE1.slope(step) <= DENSE.slope(DENSE.step_of(STAGE1.loss(step)))
    )  # fmt: skip


def saving(switch: int) -> float:
    """Seconds that a run with its switch there needs less than a dense one, to any later loss."""
    return DENSE.step_of(STAGE1.loss(switch)) * DENSE.step_s - switch * STAGE1.step_s


@dataclass
class Simulation:
    """A run on both curves: step by step, with noise in its losses and hiccups in its seconds."""

    dense: Curve = DENSE
    noise: float = 0.05
    seed: int = 0
    step: int = 0
    forks: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)

    def fork(self) -> DenseFork:
        """What a fork measures: the same tokens before and after, so without the noise."""
        self.forks.append(self.step)
        before = STAGE1.loss(self.step)
        after = self.dense.loss(self.dense.step_of(before) + FORK_STEPS)
        return DenseFork(before, after, self._hiccup(self.dense.step_s), seconds=3.0)

    def held_out(self) -> float:
        return STAGE1.loss(self.step)

    def _hiccup(self, seconds: float) -> float:
        return seconds * float(self.random.choice([1.0, 1.0, 1.0, 1.5]))

    def advance(self, criterion: Any, until: int = 6000) -> str | None:
        """Train until the criterion ends stage 1, or until a step."""
        while self.step < until:
            self.step += 1
            loss = STAGE1.loss(self.step) + self.noise * float(self.random.standard_normal())
            criterion.observe(self.step, loss, self._hiccup(STAGE1.step_s))
            if reason := criterion.switch_now(self.step):
                return reason
        return None


def slope(run: Simulation) -> Slope:
    return Slope(ASKING, FORK_STEPS, fork=run.fork)


def fork(run: Simulation) -> Fork:
    return Fork(ASKING, FORK_STEPS, fork=run.fork, held_out=run.held_out)


MAKERS = {"slope": slope, "fork": fork}


def test_the_best_switch_is_where_both_slopes_are_equal() -> None:
    savings = {step: saving(step) for step in range(10, 6000, 10)}
    best = max(savings, key=savings.__getitem__)
    assert abs(best - best_switch()) <= 10
    assert 1000 < best < 2000
    assert savings[best] > 2 * max(savings[200], savings[5990])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", MAKERS)
def test_the_switch_comes_close_to_the_best_one(name: str, seed: int) -> None:
    run = Simulation(seed=seed)
    reason = run.advance(MAKERS[name](run))
    assert reason is not None and "a second" in reason
    best = best_switch()
    assert 0.5 * best < run.step < 2.0 * best
    # The maximum is flat: what counts is how much of the saving is kept.
    assert saving(run.step) > 0.85 * saving(best)


@pytest.mark.parametrize("seed", range(4))
def test_slope_hardly_forks_while_stage_1_is_far_ahead(seed: int) -> None:
    slow = replace(DENSE, step_s=6 * STAGE1.step_s)
    run = Simulation(slow, seed=seed)
    criterion = slope(run)
    assert run.advance(criterion, until=2400) is None
    questions = 2400 // ASKING.freq - 1
    assert criterion.asked == questions
    assert len(run.forks) <= questions // 4


def test_slope_does_not_trust_an_old_dense_slope() -> None:
    run = Simulation(noise=0.0)
    criterion = slope(run)
    run.advance(criterion, until=200)
    criterion.bound, criterion.time_ratios = 0.0, [2.0] * FEWEST_RATIOS
    run.advance(criterion, until=200 + (STALE + 1) * ASKING.freq)
    assert run.forks == [200, 200 + (STALE + 1) * ASKING.freq]


@pytest.mark.parametrize("stop", [450, 505, 700])
@pytest.mark.parametrize("name", MAKERS)
def test_a_restored_criterion_decides_as_the_first_would_have(name: str, stop: int) -> None:
    straight = Simulation()
    uninterrupted = MAKERS[name](straight)
    told = straight.advance(uninterrupted)

    cut = Simulation()
    first = MAKERS[name](cut)
    cut.advance(first, until=stop)
    second = MAKERS[name](cut)
    second.load_state(json.loads(json.dumps(first.state())))
    assert cut.advance(second) == told
    assert (cut.step, cut.forks) == (straight.step, straight.forks)
    assert second.last_check == uninterrupted.last_check


@pytest.mark.parametrize("name", MAKERS)
def test_a_criterion_begins_anew_where_another_one_was_asked_before(name: str) -> None:
    run = Simulation()
    criterion = MAKERS[name](run)
    fresh = criterion.state()
    for other, make in MAKERS.items():
        if other != name:
            before = make(Simulation())
            before.asked, before.in_a_row = 7, 2
            criterion.load_state(before.state())
    criterion.load_state(Fraction(5).state())
    assert criterion.state() == fresh


@pytest.mark.parametrize("name", MAKERS)
def test_nothing_is_measured_early_and_the_latest_step_ends_stage_1(name: str) -> None:
    run = Simulation()
    criterion = MAKERS[name](run)
    criterion.asking = Asking(earliest=300, latest=450, freq=100, patience=3)
    reason = run.advance(criterion)
    assert run.step == 450
    assert reason is not None and reason.startswith("step 450 is the latest, ")
    assert min(run.forks) == 300


def test_a_fork_is_not_begun_that_could_not_be_judged() -> None:
    run = Simulation()
    criterion = fork(run)
    criterion.asking = Asking(earliest=100, latest=100 + FORK_STEPS, freq=100, patience=1)
    reason = run.advance(criterion)
    assert run.forks == []
    assert reason == f"step {run.step} is the latest, and fork has measured nothing"


def answers(make: Any, fork_result: DenseFork, until: int = 60) -> Measured:
    """Judge the same fork again and again, against a stage 1 that falls by 0.001 a step."""
    asking = Asking(earliest=20, latest=100, freq=20, patience=2)
    criterion = make(asking, fork_result)
    for step in range(1, until + 1):
        criterion.observe(step, 5.0 - 0.001 * step, 0.1)
        if criterion.switch_now(step):
            break
    return criterion


def constant_fork(asking: Asking, result: DenseFork) -> Fork:
    return Fork(asking, 10, fork=lambda: result, held_out=lambda: 4.99)


def constant_slope(asking: Asking, result: DenseFork) -> Slope:
    return Slope(asking, 10, fork=lambda: result)


@pytest.mark.parametrize("make", [constant_fork, constant_slope])
@pytest.mark.parametrize(
    "broken", [DenseFork(5.0, None, 0.1, 1.0), DenseFork(5.0, None, None, 1.0)]
)
def test_dense_training_that_diverges_or_cannot_begin_never_wins(
    make: Any, broken: DenseFork
) -> None:
    criterion = answers(make, broken)
    assert criterion.asked > 0 and criterion.in_a_row == 0
    assert criterion.last_check is None or json.dumps(criterion.last_check, allow_nan=False)


def test_a_loss_that_rises_less_is_no_gain() -> None:
    asking = Asking(earliest=20, latest=100, freq=20, patience=1)
    rising = Fork(asking, 10, fork=lambda: DenseFork(5.0, 5.01, 0.1, 1.0), held_out=lambda: 5.5)
    for step in range(1, 31):
        rising.observe(step, 5.0, 0.1)
        assert rising.switch_now(step) is None
    assert rising.last_check is not None and not rising.last_check["dense_wins"]


def test_one_answer_against_dense_training_starts_the_count_again() -> None:
    promises = iter([2.0, 2.0, 0.5, 2.0, 2.0, 2.0])

    def probe() -> GradientProbe:
        return GradientProbe(1.0, next(promises), 1.0, 0.7, 0.2)

    criterion = Blocked(Asking(earliest=1, latest=100, freq=10, patience=3), probe=probe)
    told = {}
    for step in range(1, 61):
        criterion.observe(step, 5.0, 0.1)
        reason = criterion.switch_now(step)
        if criterion.last_check:
            told[step] = (criterion.last_check["in_a_row"], reason is not None)
    assert told == {
        10: (1, False), 20: (2, False), 30: (0, False), 40: (1, False), 50: (2, False),
        60: (3, True),
    }  # fmt: skip


def test_blocked_divides_the_promises_by_the_median_of_all_time_ratios() -> None:
    ratios = iter([1.5, 9.0, 1.4])

    def probe() -> GradientProbe:
        return GradientProbe(0.010, 0.018, next(ratios), None, 0.2)

    criterion = Blocked(Asking(earliest=1, latest=100, freq=1, patience=9), probe=probe)
    for step in range(1, 4):
        criterion.observe(step, 5.0, 0.1)
        criterion.switch_now(step)
    check = criterion.last_check
    assert check is not None
    assert check["time_ratio"] == 1.5
    assert check["stage1_slope"] == pytest.approx(0.10)
    assert check["dense_slope"] == pytest.approx(0.12)
    assert check["dense_wins"]


def test_a_promise_that_is_not_finite_is_no_answer_for_dense_training() -> None:
    criterion = Blocked(
        Asking(earliest=1, latest=100, freq=1, patience=1),
        probe=lambda: GradientProbe(0.01, math.nan, 1.0, None, 0.2),
    )
    criterion.observe(1, 5.0, 0.1)
    assert criterion.switch_now(1) is None
    assert criterion.last_check is not None
    assert criterion.last_check["dense_slope"] is None
    json.dumps(criterion.last_check, allow_nan=False)


def test_fraction_switches_at_its_step_and_keeps_nothing() -> None:
    criterion = Fraction(5)
    assert [criterion.switch_now(step) is not None for step in (4, 5)] == [False, True]
    assert criterion.state() == {}


@pytest.mark.parametrize("steps", [200, 2000, 20000])
@pytest.mark.parametrize("power", [0.1, 0.4, 0.8])
def test_the_fall_of_a_noisy_power_law_is_found(steps: int, power: float) -> None:
    truth = Curve(floor=2.0, scale=4.0, power=power, step_s=1.0)
    noise = np.random.default_rng(3).standard_normal(steps + 1) * 0.002 * (power + 0.2)
    curve = LossCurve()
    for step in range(1, steps + 1):
        spike = 5.0 if step % 97 == 0 and steps < MOST_POINTS else 0.0
        curve.add(step, truth.loss(step) + float(noise[step]) + spike)
    fall = curve.fall_per_step()
    assert fall == pytest.approx(truth.slope(steps), rel=0.25)


def test_few_steps_tell_no_slope() -> None:
    curve = LossCurve()
    for step in range(1, 20):
        curve.add(step, 5.0 - 0.01 * step)
    assert curve.fall_per_step() is None


def test_a_long_curve_stays_small() -> None:
    curve = LossCurve()
    for step in range(1, 50_001):
        curve.add(step, 1.0 + 1.0 / step)
    assert len(json.dumps(curve.state())) < 60_000


@pytest.mark.parametrize(
    ("schedule", "answers"),
    [
        ("{switch: fork, at: 0.5, check_freq: 10, fork_steps: 5}", 4),
        ("{switch: fork, at: 0.5, check_freq: 10, fork_steps: 15}", 2),
        ("{switch: fork, at: 0.5, check_freq: 10, fork_steps: 20}", 1),
        ("{switch: blocked, at: 0.5, check_freq: 15}", 3),
        ("{switch: blocked, at: 0.1, earliest: 0.0, check_freq: 40}", 0),
    ],
)
def test_a_configuration_is_told_that_there_is_no_time_for_the_answers(
    workplace: Workplace, schedule: str, answers: int
) -> None:
    """The rule counts as the criteria do: the run's own number is what it warns of."""
    text = schedule.replace("}", ", patience: 99}")
    resolved = load_config(str(workplace.config_file), ["Engine.max_steps=100", f"Schedule={text}"])
    (warning,) = [line for line in resolved.warnings if "measurements" in line]
    assert f"there is time for {answers} measurements" in warning
    options = resolved.config.Schedule
    asking = Asking(
        max(1, round(options.earliest * 100)), round(options.at * 100), options.check_freq, 99
    )
    made: Measured
    if options.switch == "fork":
        made = Fork(
            asking, options.fork_steps,
            fork=lambda: DenseFork(5.0, 4.9, 0.1, 1.0), held_out=lambda: 4.9,
        )  # fmt: skip
    else:
        made = Blocked(asking, probe=lambda: GradientProbe(1.0, 1.0, 1.0, None, 1.0))
    for step in range(1, asking.latest + 1):
        made.observe(step, 5.0, 0.1)
        made.switch_now(step)
    assert made.asked == answers


def test_costly_forks_are_told_with_what_to_set(workplace: Workplace) -> None:
    file = str(workplace.config_file)
    costly = load_config(file, ["Schedule={switch: fork, check_freq: 100, fork_steps: 50}"])
    assert any("adds more than 50%" in line and "about 1500" in line for line in costly.notices)
    cheap = load_config(file, ["Schedule={switch: fork, check_freq: 1000, fork_steps: 50}"])
    assert not any("adds more" in line for line in cheap.notices)
