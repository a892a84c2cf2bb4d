"""Steps for equal tokens and equal seconds, against sums made by hand and by trying all."""

from __future__ import annotations

import random

import pytest

from fastffn_cli.comparison.budget import Pace, equal_seconds_steps, planned_dense_steps
from fastffn_cli.comparison.history import History
from fastffn_cli.config.schema_training import ScheduleSection

HALF = ScheduleSection(switch="fraction", at=0.5)


def history(
    steps: int, changes: tuple[tuple[int, bool], ...], extra: tuple[tuple[int, float], ...] = ()
) -> History:
    return History(steps, (), changes, extra, (), None, steps, 1.0, None, None)


@pytest.mark.parametrize(
    ("schedule", "steps", "dense"),
    [
        (ScheduleSection(), 100, 0),
        (HALF, 100, 50),
        (HALF, 5, 3),  # round(2.5) is 2 steps of stage 1
        (HALF, 2, 1),
        (ScheduleSection(switch="fraction", at=0.75), 100, 25),
        (ScheduleSection(switch="fraction", at=0.999), 100, 1),
        (ScheduleSection(switch="fraction", at=0.5, dense_start=0.1), 100, 60),
        (ScheduleSection(switch="slope"), 100, None),
    ],
)
def test_dense_steps_of_a_schedule(
    schedule: ScheduleSection, steps: int, dense: int | None
) -> None:
    assert planned_dense_steps(schedule, steps) == dense


def test_a_faster_arm_gets_more_steps() -> None:
    # Half at 0.5 s and half at 1 s is 0.75 s a step: 100 s are 133 steps.
    assert equal_seconds_steps(100.0, HALF, Pace(0.5, 1.0), None) == 133
    assert equal_seconds_steps(100.0, ScheduleSection(), Pace(0.5, 1.0), None) == 200
    assert equal_seconds_steps(100.0, ScheduleSection(), Pace(2.0, 1.0), None) == 50


def test_a_run_has_a_step_for_each_stage_however_few_seconds_there_are() -> None:
    assert equal_seconds_steps(0.1, HALF, Pace(0.5, 1.0), None) == 2
    assert equal_seconds_steps(0.1, ScheduleSection(), Pace(0.5, 1.0), None) == 1


def test_a_switch_seen_in_the_run_of_equal_tokens_is_paid_for() -> None:
    seen = history(100, ((0, False), (50, True)), ((50, 15.0),))
    # 85 s are left for 0.75 s a step.
    assert equal_seconds_steps(100.0, HALF, Pace(0.5, 1.0), seen) == 113


def test_an_online_criterion_takes_the_share_that_was_seen() -> None:
    online = ScheduleSection(switch="slope")
    pace = Pace(0.5, 1.0)
    assert equal_seconds_steps(100.0, online, pace, None) is None
    # A quarter cheap: 0.875 s a step, and a tenth of a second each of measurements.
    seen = history(100, ((0, False), (25, True)), ((10, 5.0), (20, 5.0)))
    assert equal_seconds_steps(97.5, online, pace, seen) == 100


def test_no_other_number_of_steps_is_nearer() -> None:
    source = random.Random(5)
    for _ in range(200):
        pace = Pace(source.uniform(0.2, 1.5), source.uniform(0.2, 1.5))
        schedule = ScheduleSection(switch="fraction", at=source.uniform(0.05, 0.95))
        seconds = source.uniform(5, 60)
        steps = equal_seconds_steps(seconds, schedule, pace, None)
        assert steps is not None

        def distance(
            count: int,
            schedule: ScheduleSection = schedule,
            pace: Pace = pace,
            seconds: float = seconds,
        ) -> float:
            return abs(pace.seconds(planned_dense_steps(schedule, count) or 0, count) - seconds)

        best = min(range(1, 400), key=distance)
        # Where the steps of the stages are rounded, one step more can take no longer.
        assert distance(steps) <= distance(best) + abs(pace.stage1 - pace.dense)
