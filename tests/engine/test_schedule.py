"""The learning rate: FleetX's digits, the other shapes, the edges."""

from __future__ import annotations

import math

import pytest

from fastffn_cli.config.schema_training import LearningRate
from fastffn_cli.engine.logline import train_line
from fastffn_cli.engine.meter import Rates
from fastffn_cli.engine.schedule import Schedule, build_schedule

# `learning rate:` of steps 1 to 9 in the seed document's log (FleetX, July 2022).
SEED_LOG = (
    *("5.55556e-09", "8.33333e-09", "1.11111e-08", "1.38889e-08", "1.66667e-08"),
    *("1.94444e-08", "2.22222e-08", "2.50000e-08", "2.77778e-08"),
)


def test_the_seed_log_is_reproduced_digit_for_digit() -> None:
    section = LearningRate(decay_steps=360000, warmup_rate=0.01, max_lr=1e-5, min_lr=5e-5)
    schedule = build_schedule(section, max_steps=500000)
    still = Rates(reader_s=0.0, step_s=1.0, tokens_per_s=0.0, warm=True)

    lines = [
        train_line(
            step=step, epoch=0, batch=step - 1, loss=11.0, rates=still, next_rate=schedule(step + 1)
        )
        for step in range(1, 10)
    ]

    assert tuple(line.rpartition("learning rate: ")[2] for line in lines) == SEED_LOG


def test_a_log_line_is_the_seed_documents_first_one() -> None:
    line = train_line(
        step=1,
        epoch=0,
        batch=0,
        loss=11.052017212,
        rates=Rates(reader_s=0.0571, step_s=1.59627, tokens_per_s=8192 / 1.59627, warm=False),
        next_rate=5.55556e-09,
    )
    assert line == (
        "global step 1, epoch: 0, batch: 0, loss: 11.052017212, avg_reader_cost: 0.05710 sec, "
        "avg_batch_cost: 1.59627 sec, speed: 0.63 step/s, ips_total: 5132 tokens/s, "
        "ips: 5132 tokens/s, learning rate: 5.55556e-09"
    )


def test_ips_is_that_of_one_of_several_data_parallel_processes() -> None:
    line = train_line(
        step=1,
        epoch=0,
        batch=0,
        loss=11.0,
        rates=Rates(reader_s=0.0, step_s=1.0, tokens_per_s=8192.0, warm=True),
        next_rate=1e-5,
        data_degree=4,
    )
    assert "ips_total: 8192 tokens/s, ips: 2048 tokens/s" in line


def shape(name: str, **changes: float) -> Schedule:
    sizes = {"max_lr": 1.0, "min_lr": 0.1, "warmup_steps": 10, "decay_steps": 110, **changes}
    return Schedule(name, **sizes)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["cosine", "linear", "constant"])
def test_every_shape_warms_up_in_a_straight_line(name: str) -> None:
    schedule = shape(name)
    assert [schedule(step) for step in (1, 5, 10)] == [0.1, 0.5, 1.0]


@pytest.mark.parametrize(
    ("name", "quarter", "half", "end", "after"),
    [
        ("cosine", 0.1 + 0.45 * (1 + math.sqrt(0.5)), 0.55, 0.1, 0.1),
        ("linear", 0.775, 0.55, 0.1, 0.1),
        ("constant", 1.0, 1.0, 1.0, 1.0),
    ],
)
def test_shapes_after_the_warm_up(
    name: str, quarter: float, half: float, end: float, after: float
) -> None:
    schedule = shape(name)
    rates = [schedule(step) for step in (35, 60, 110, 111)]
    assert rates == pytest.approx([quarter, half, end, after], rel=1e-12)


def test_the_originals_cosine_counts_from_zero_and_jumps_behind_the_warm_up() -> None:
    schedule = shape("mindspore_cosine")

    def cosine(count: int) -> float:
        return 0.1 + 0.5 * (1.0 - 0.1) * (1.0 + math.cos(math.pi * count / 110))

    assert [schedule(step) for step in (1, 2, 10)] == [0.0, 0.1, 0.9]
    expected = [cosine(count) for count in (10, 11, 55, 109, 110, 110)]
    rates = [schedule(step) for step in (11, 12, 56, 110, 111, 500)]
    assert rates == pytest.approx(expected, rel=1e-12)
    assert rates[0] < 1.0 - 1e-3
    assert rates[-1] == pytest.approx(0.1)


def test_the_originals_warm_up_is_a_whole_number_of_steps() -> None:
    section = LearningRate(name="mindspore_cosine", warmup_rate=0.1)
    assert build_schedule(section, max_steps=1019).warmup_steps == 101
    without = build_schedule(section, max_steps=9)
    assert without(1) == section.max_lr


@pytest.mark.parametrize("name", ["cosine", "linear", "constant"])
def test_without_warm_up_the_first_update_is_not_lost(name: str) -> None:
    assert shape(name, warmup_steps=0)(1) > 0.98


def test_a_warm_up_as_long_as_the_decay_ends_at_the_top_and_then_at_min_lr() -> None:
    schedule = shape("cosine", warmup_steps=110)
    assert schedule(110) == 1.0
    assert schedule(111) == 0.1


def test_min_above_max_rises_as_in_the_seed_document() -> None:
    schedule = shape("cosine", max_lr=1e-5, min_lr=5e-5)
    assert schedule(60) == pytest.approx(3e-5)
    assert schedule(500) == 5e-5


def test_decay_steps_default_to_the_run_and_warmup_steps_beat_the_rate() -> None:
    section = LearningRate(warmup_rate=0.5, warmup_steps=3)
    schedule = build_schedule(section, max_steps=40)
    assert (schedule.decay_steps, schedule.warmup_steps) == (40, 3)
    assert build_schedule(LearningRate(warmup_rate=0.055), max_steps=100).warmup_steps == (
        pytest.approx(5.5)
    )


def mindformers_rate(
    kind: str, t: int, w: int, n: int, lr: float, end: float, power: float, cycles: float
) -> float:
    """MindFormers r0.3's formulas (`core/lr/lr_schedule.py`), t from 0 and w of at least 1."""
    if t < w:
        return lr * t / w
    p = (t - w) / (n - w)
    if kind == "polynomial":
        return (lr - end) * (1 - p) ** power + end
    if kind == "linear":
        return lr * max(0.0, (n - t) / (n - w))
    if kind == "cosine":
        return end + (lr - end) * max(0.0, 0.5 * (1 + math.cos(math.pi * 0.5 * 2.0 * p)))
    if kind == "cosine_restarts":
        return end + (lr - end) * max(0.0, 0.5 * (1 + math.cos(math.pi * ((cycles * p) % 1.0))))
    return lr


@pytest.mark.parametrize("warmup", [1, 7, 2000])
@pytest.mark.parametrize(
    ("name", "power", "cycles"),
    [
        ("polynomial", 1.0, 0.5),
        ("polynomial", 2.5, 0.5),
        ("linear", 1.0, 0.5),
        ("cosine", 1.0, 0.5),
        ("cosine_restarts", 1.0, 0.5),
        ("cosine_restarts", 1.0, 3.0),
        ("constant", 1.0, 0.5),
    ],
)
def test_counted_from_0_every_shape_is_mindformers(
    name: str, power: float, cycles: float, warmup: int
) -> None:
    end = 0.0 if name == "linear" else 1e-6
    section = LearningRate(
        name=name, max_lr=5e-5, min_lr=end, warmup_steps=warmup, power=power, num_cycles=cycles,
        count_from=0,
    )  # fmt: skip
    schedule = build_schedule(section, max_steps=5000)
    for step in (*range(1, 12), *range(1998, 2004), 3456, *range(4990, 5001)):
        theirs = mindformers_rate(name, step - 1, warmup, 5000, 5e-5, end, power, cycles)
        assert schedule(step) == pytest.approx(theirs, rel=1e-12, abs=1e-18)


def test_counted_from_0_a_warm_up_begins_at_0_and_a_run_without_one_at_its_maximum() -> None:
    assert shape("polynomial", count_from=0)(1) == 0.0
    assert shape("polynomial", count_from=0, warmup_steps=0)(1) == 1.0
    assert shape("polynomial", warmup_steps=0)(1) == 1.0 - 0.9 / 110


def test_a_share_for_the_warm_up_is_rounded_down_where_counting_begins_at_0() -> None:
    section = LearningRate(name="linear", warmup_rate=0.1, count_from=0)
    assert build_schedule(section, max_steps=109).warmup_steps == 10


@pytest.mark.parametrize("name", ["polynomial", "cosine_restarts"])
def test_the_new_shapes_end_at_their_minimum(name: str) -> None:
    schedule = shape(name, num_cycles=3.0)
    assert [schedule(step) for step in (110, 111, 5000)] == [0.1, 0.1, 0.1]


def test_each_cycle_begins_at_the_maximum_again() -> None:
    schedule = shape("cosine_restarts", num_cycles=4.0)
    assert [schedule(step) for step in (10, 35, 60, 85)] == [1.0] * 4
    assert schedule(34) < 0.11
