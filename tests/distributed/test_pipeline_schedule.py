"""What each stage does, and that all of them together come to an end."""

from itertools import product

import pytest

from fastffn_cli.distributed.pipeline_schedule import (
    Backward,
    Exchange,
    Forward,
    plan_evaluation,
    plan_training,
)

SIZES = list(product(range(1, 7), range(1, 10)))


def all_stages(plan, stages, micro_batches):
    return [plan(stages, stage, micro_batches) for stage in range(stages)]


def play(plans):
    """Let stages act, each exchange when both of its sides have come to it; return who is left.

    Checks that a tensor is sent after it was computed, and used after it was received.
    """
    todo = [list(plan) for plan in plans]
    have = [set() for _ in plans]
    moved = True
    while moved:
        moved = False
        for stage, actions in enumerate(todo):
            if not actions:
                continue
            action, last = actions[0], stage == len(plans) - 1
            if isinstance(action, Exchange):
                if action.neighbour == "previous":
                    continue  # the earlier stage of the two moves both
                other = todo[stage + 1][0] if todo[stage + 1] else None
                if not isinstance(other, Exchange) or other.neighbour != "previous":
                    continue
                assert (action.sends, action.receives) == (other.receives, other.sends)
                if action.sends is not None:
                    assert ("output", action.sends) in have[stage]
                    have[stage + 1].add(("input", action.sends))
                if action.receives is not None:
                    assert ("input gradient", action.receives) in have[stage + 1]
                    have[stage].add(("output gradient", action.receives))
                todo[stage + 1].pop(0)
            elif isinstance(action, Forward):
                assert stage == 0 or ("input", action.number) in have[stage]
                have[stage].add(("output", action.number))
            else:
                assert ("output", action.number) in have[stage]
                assert last or ("output gradient", action.number) in have[stage]
                have[stage].add(("input gradient", action.number))
            actions.pop(0)
            moved = True
    return [stage for stage, actions in enumerate(todo) if actions]


@pytest.mark.parametrize("plan", [plan_training, plan_evaluation])
def test_blocking_exchanges_come_to_an_end(plan):
    for stages, micro_batches in SIZES:
        assert play(all_stages(plan, stages, micro_batches)) == [], (stages, micro_batches)


def test_every_micro_batch_goes_forward_and_backward_once_in_order():
    for stages, micro_batches in SIZES:
        for actions in all_stages(plan_training, stages, micro_batches):
            for kind in (Forward, Backward):
                numbers = [action.number for action in actions if isinstance(action, kind)]
                assert numbers == list(range(micro_batches))


def test_a_stage_has_no_more_micro_batches_under_way_than_stages_follow_it():
    for stages, micro_batches in SIZES:
        for stage, actions in enumerate(all_stages(plan_training, stages, micro_batches)):
            under_way, most = 0, 0
            for action in actions:
                under_way += isinstance(action, Forward) - isinstance(action, Backward)
                most = max(most, under_way)
            assert most == min(stages - stage, micro_batches)


def test_one_forward_one_backward_with_their_exchanges():
    first, second, last = all_stages(plan_training, 3, 4)
    assert first == [
        Forward(0), Exchange("next", sends=0),
        Forward(1), Exchange("next", sends=1),
        Forward(2), Exchange("next", sends=2, receives=0), Backward(0),
        Forward(3), Exchange("next", sends=3, receives=1), Backward(1),
        Exchange("next", receives=2), Backward(2),
        Exchange("next", receives=3), Backward(3),
    ]  # fmt: skip
    assert second[:8] == [
        Exchange("previous", receives=0), Forward(0), Exchange("next", sends=0),
        Exchange("previous", receives=1), Forward(1),
        Exchange("next", sends=1, receives=0), Backward(0),
        Exchange("previous", sends=0, receives=2),
    ]  # fmt: skip
    assert last[:7] == [
        Exchange("previous", receives=0), Forward(0), Backward(0),
        Exchange("previous", sends=0, receives=1), Forward(1), Backward(1),
        Exchange("previous", sends=1, receives=2),
    ]  # fmt: skip


def test_the_time_of_a_step_is_that_of_the_formula():
    """Passes of one unit each and free exchanges: 2 (m + p - 1) units (section 2.2 there)."""
    for stages, micro_batches in SIZES:
        plans = all_stages(plan_training, stages, micro_batches)
        assert duration(plans) == 2 * (micro_batches + stages - 1)


def duration(plans):
    """When the last stage is done, if an exchange lasts until both of its sides have come to it."""
    clock, todo = [0] * len(plans), [list(plan) for plan in plans]
    while any(todo):
        for stage, actions in enumerate(todo):
            while actions and not isinstance(actions[0], Exchange):
                actions.pop(0)
                clock[stage] += 1
            if not actions or actions[0].neighbour == "previous" or not todo[stage + 1]:
                continue
            other = todo[stage + 1][0]
            if isinstance(other, Exchange) and other.neighbour == "previous":
                actions.pop(0), todo[stage + 1].pop(0)
                clock[stage] = clock[stage + 1] = max(clock[stage : stage + 2])
    return max(clock)
