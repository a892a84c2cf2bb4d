"""What is read out of the runs, against figures worked out by hand."""

import math

import pytest

from fastffn_cli.comparison.report_evidence import budgets, weigh
from tests.comparison.report_runs import arm, cheap, dense, results, run, unfinished


def evidence_of(name, *arms, budget="tokens"):
    (found,) = [each for each in weigh(results(*arms), budget) if each.arm.name == name]
    return found


def test_differences_are_paired_by_seed():
    found = evidence_of("narrow", dense((3.0, 3.1, 3.2)), cheap((2.9, 3.05, 3.05)))
    # -0.10, -0.05, -0.15
    assert found.pairs == 3
    assert found.difference.mean == pytest.approx(-0.10)
    assert found.difference.error == pytest.approx(0.05 / math.sqrt(3))
    assert found.final.mean == pytest.approx(3.0)


def test_time_to_the_mean_of_the_baselines_losses():
    # Mean 3.1. From 3.5 at 112.5 s to 2.9 at 150 s: 3.1 after two thirds, 137.5 of 200 s.
    found = evidence_of("narrow", dense((3.0, 3.1, 3.2)), cheap((2.9, 2.9, 2.9)))
    assert found.reached_mean == 3
    assert found.to_mean.mean == pytest.approx(137.5 / 200)
    assert found.to_mean.deviation == pytest.approx(0.0, abs=1e-12)


def test_time_to_the_loss_of_the_same_seed():
    found = evidence_of("narrow", dense((3.0, 3.1, 3.2)), cheap((2.9, 2.9, 2.9)))
    # Targets 3.0, 3.1, 3.2 on the same way down: 5/6, 4/6, 3/6 of 37.5 s after 112.5 s.
    shares = [(112.5 + part * 37.5) / 200 for part in (5 / 6, 4 / 6, 3 / 6)]
    assert found.reached == 3
    assert found.to_paired.mean == pytest.approx(sum(shares) / 3)
    assert found.to_paired.deviation == pytest.approx(37.5 / 6 / 200)


def test_a_loss_that_is_not_reached_has_no_time():
    found = evidence_of("narrow", dense((3.0, 3.1, 3.2)), cheap((3.05, 3.2, 3.3)))
    assert found.reached == 0
    assert found.to_paired is None
    assert found.reached_mean == 1  # 3.05 is below the mean, 3.1, if above 3.0 of its own seed
    assert not found.always_reached


def test_unfinished_seeds_are_left_out_of_both_sides():
    narrow = cheap((2.9, 2.9))
    partial = arm("dense", [run("dense", 1, (5.0, 3.0)), unfinished("dense", 2)])
    found = evidence_of("narrow", partial, narrow)
    assert found.pairs == 1
    assert found.difference.count == 1
    assert found.difference.deviation is None
    assert found.final.count == 2


def test_a_diverged_seed_is_a_pair_that_does_not_reach_the_loss():
    runs = [
        run("narrow", 1, (4.0, 2.9), step_s=1.5),
        unfinished("narrow", 2, problem="diverged at step 12"),
    ]
    found = evidence_of("narrow", dense(), arm("narrow", runs))
    assert (found.pairs, found.reached, found.diverged) == (2, 1, 1)
    assert not found.always_reached


def test_a_loss_that_is_no_number_is_a_divergence():
    runs = [run("narrow", 1, (4.0, float("nan")))]
    found = evidence_of("narrow", dense(), arm("narrow", runs))
    assert found.final is None
    assert found.diverged == 1


def test_without_a_finished_baseline_there_is_nothing_to_pair():
    found = evidence_of("narrow", arm("dense"), cheap((2.9,)))
    assert found.pairs == 0
    assert found.difference is None
    assert found.to_mean is None
    assert found.final.mean == pytest.approx(2.9)


def test_budgets_are_those_that_runs_were_made_for():
    seconds = arm("narrow", [run("narrow", 1, (3.0,), budget="seconds")])
    both = arm("narrow", [run("narrow", 1, (3.0,)), *seconds.runs])
    assert budgets(results(dense(), both)) == ("tokens", "seconds")
    assert budgets(results(dense(), seconds)) == ("seconds",)
    assert budgets(results(dense(), cheap((3.0,)))) == ("tokens",)
    assert budgets(results(dense(), arm("narrow"))) == ("tokens",)
    assert budgets(results(arm("dense"))) == ()


def test_at_equal_seconds_the_baseline_is_that_of_equal_tokens():
    narrow = arm("narrow", [run("narrow", 1, (4.0, 2.9), step_s=1.5, budget="seconds")])
    found = evidence_of("narrow", dense((3.0,)), narrow, budget="seconds")
    assert found.pairs == 1
    assert found.difference.mean == pytest.approx(-0.1)
