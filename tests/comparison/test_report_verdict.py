"""The sentence: what it picks, and that it claims no more than the seeds show."""

from dataclasses import replace

import pytest

from fastffn_cli.comparison.report_verdict import judge
from fastffn_cli.comparison.results import StepTime
from tests.comparison.report_runs import arm, cheap, dense, results, run, unfinished

DENSE = (3.0, 3.1, 3.2)


def at_seconds(name, finals, step_s=1.5):
    """Runs of 200 s: as long as the baseline's."""
    steps = int(200 / step_s)
    return [
        run(name, seed, (4.0, final), step_s=step_s, steps=steps, budget="seconds")
        for seed, final in enumerate(finals, start=1)
    ]


def test_picks_the_arm_whose_advantage_is_beyond_the_noise():
    verdict = judge(results(dense(DENSE), cheap((2.9, 3.01, 3.1))))
    assert (verdict.outcome, verdict.pick) == ("arm", "narrow")
    assert "Pick narrow" in verdict.sentence
    assert "3 seeds" in verdict.sentence
    assert "2 layers x 64" in verdict.sentence
    assert "100,000 tokens" in verdict.sentence or "100.00 K tokens" in verdict.sentence


def test_picks_the_fastest_of_several():
    slow = cheap((2.9, 3.0, 3.1), name="monarch", step_s=1.8)
    fast = cheap((2.9, 3.0, 3.1), name="narrow", step_s=1.2)
    assert judge(results(dense(DENSE), slow, fast)).pick == "narrow"


def test_one_seed_never_picks_anything():
    verdict = judge(results(dense((3.0,)), cheap((2.0,)), seeds=(1,)))
    assert verdict.outcome == "undecided"
    assert "1 seed" in verdict.sentence
    assert "3 at least" in verdict.sentence
    assert "Pick" not in verdict.sentence


def test_an_advantage_within_the_noise_is_undecided_and_says_how_many_seeds_it_takes():
    # Losses far below in one seed, just reached in the others: shares of 0.64 and 0.75.
    verdict = judge(results(dense(DENSE), cheap((2.99, 3.09, 0.5), step_s=1.9)))
    assert verdict.outcome == "undecided"
    assert "seeds would settle it" in verdict.sentence
    assert "±" in verdict.sentence


def test_an_arm_that_misses_the_loss_with_one_seed_is_not_picked():
    verdict = judge(results(dense(DENSE), cheap((2.0, 2.0, 3.21))))
    assert verdict.outcome == "undecided"
    assert "no other arm always reached" in verdict.sentence


def test_an_arm_that_diverged_with_one_seed_is_not_picked():
    lucky = cheap((2.0, 2.1))
    lucky = replace(
        lucky, runs=(*lucky.runs, unfinished("narrow", 3, problem="diverged at step 9"))
    )
    assert judge(results(dense(DENSE), lucky)).outcome == "undecided"


def test_dense_is_picked_where_every_arm_is_worse_at_equal_seconds():
    narrow = cheap((3.2, 3.3, 3.41))
    narrow = replace(narrow, runs=narrow.runs + tuple(at_seconds("narrow", (3.1, 3.21, 3.3))))
    verdict = judge(results(dense(DENSE), narrow))
    assert (verdict.outcome, verdict.pick) == ("baseline", "dense")
    assert "at equal seconds" in verdict.sentence
    assert "3 seeds" in verdict.sentence


def test_dense_is_picked_where_the_arms_come_to_its_loss_later():
    verdict = judge(results(dense(DENSE), cheap((2.99, 3.09, 3.19), step_s=2.2)))
    assert verdict.pick == "dense"
    assert "later" in verdict.sentence


def test_dense_is_picked_where_the_arms_diverge():
    runs = [unfinished("narrow", seed, problem="diverged at step 9") for seed in (1, 2, 3)]
    verdict = judge(results(dense(DENSE), arm("narrow", runs)))
    assert verdict.pick == "dense"
    assert "every other arm diverged" in verdict.sentence
    one_seed = results(dense((3.0,)), arm("narrow", runs[:1]), seeds=(1,))
    assert judge(one_seed).outcome == "undecided"


def test_dense_is_not_picked_while_one_arm_may_be_as_good():
    worse = cheap((3.2, 3.3, 3.41))
    unclear = cheap((3.01, 3.05, 3.25), name="monarch")
    assert judge(results(dense(DENSE), worse, unclear)).outcome == "undecided"


def test_without_runs_at_equal_seconds_the_sentence_says_so():
    verdict = judge(results(dense(DENSE), cheap((3.2, 3.3, 3.41))))
    assert verdict.pick == "dense"
    assert "Equal seconds were not compared" in verdict.sentence


def test_worse_at_equal_tokens_but_better_at_equal_seconds_is_picked():
    narrow = cheap((3.1, 3.2, 3.3))
    narrow = replace(narrow, runs=narrow.runs + tuple(at_seconds("narrow", (2.6, 2.71, 2.8))))
    verdict = judge(results(dense(DENSE), narrow))
    assert (verdict.outcome, verdict.pick) == ("arm", "narrow")
    assert "equal seconds" in verdict.sentence


@pytest.mark.parametrize(
    ("arms", "said"),
    [
        ([arm("dense"), cheap((2.9,))], "dense has no finished run"),
        ([arm("dense", [unfinished("dense", 1)]), cheap((2.9,))], "dense has no finished run"),
        (
            [arm("dense", [unfinished("dense", 1, problem="diverged at step 3")]), cheap((2.9,))],
            "the baseline dense has diverged",
        ),
        ([dense((3.0,)), arm("narrow")], "no other arm has a finished run"),
        ([dense((3.0,))], "nothing to compare"),
        ([arm("dense"), arm("narrow")], "dense has no finished run"),
    ],
)
def test_says_why_nothing_can_be_said(arms, said):
    verdict = judge(results(*arms))
    assert verdict.outcome == "nothing"
    assert said in verdict.sentence


def test_counts_what_is_not_finished():
    narrow = arm("narrow", [run("narrow", 1, (2.0,)), unfinished("narrow", 2)])
    sentence = judge(results(dense(DENSE), narrow)).sentence
    assert "2 of 6 runs are not finished" in sentence


def test_runs_of_the_baseline_at_equal_tokens_are_not_missed_at_equal_seconds():
    narrow = cheap((3.1, 3.2, 3.3))
    narrow = replace(narrow, runs=narrow.runs + tuple(at_seconds("narrow", (2.6, 2.71, 2.8))))
    assert "not finished" not in judge(results(dense(DENSE), narrow)).sentence


def test_names_a_learning_rate_at_the_edge_of_its_sweep():
    verdict = judge(results(dense(DENSE, at_edge=True), cheap((2.9, 3.01, 3.1))))
    assert "The best learning rate of dense lies at an edge" in verdict.sentence


def test_a_pick_on_step_times_that_overlap_is_made_with_a_warning():
    narrow = cheap((2.9, 3.01, 3.1))
    assert "hard to tell apart" not in judge(results(dense(DENSE), narrow)).sentence
    blurred = replace(narrow, stage1_step=StepTime(1.5, 1.0, 1.95))
    verdict = judge(results(dense(DENSE), blurred))
    assert verdict.pick == "narrow"
    assert "hard to tell apart (stage 1 1 to 1.95 s, dense 1.9 to 2.1 s" in verdict.sentence


def test_a_pick_on_step_times_of_one_round_is_made_with_a_warning():
    once = replace(cheap((2.9, 3.01, 3.1)), stage1_step=StepTime(1.5, 1.5, 1.5))
    verdict = judge(results(dense(DENSE), once))
    assert verdict.pick == "narrow"
    assert "timed in one round only" in verdict.sentence


def test_equal_arms_are_undecided_almost_always():
    import numpy as np

    draw = np.random.default_rng(3)
    outcomes = []
    for _ in range(150):
        losses = draw.normal(3.0, 0.05, (3, 3)).tolist()
        equals = [cheap(each, name=f"arm{i}", step_s=2.0) for i, each in enumerate(losses[1:])]
        outcomes.append(judge(results(dense(losses[0]), *equals)).outcome)
    assert outcomes.count("arm") / len(outcomes) <= 0.05
    assert outcomes.count("baseline") / len(outcomes) <= 0.05
