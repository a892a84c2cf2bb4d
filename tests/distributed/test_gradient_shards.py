"""Sharding stage 2: an owner's gradient is the whole batch's, and nobody else keeps one."""

import json

import pytest

from tests.distributed.processes import run_processes

FACTORS = {"ffn": {"kind": "low_rank", "rank": 4}, "embedding_rank": 5, "use_recompute": True}


@pytest.mark.slow
@pytest.mark.parametrize(("dp", "sharding"), [(1, 2), (2, 2)])
def test_gradients_of_micro_batches_add_up_at_their_owners(dp, sharding):
    members = run_processes(
        "tests.distributed.gradient_shards_member",
        [str(dp), str(sharding), json.dumps({}), json.dumps(FACTORS)],
        dp * sharding,
    )
    answers = [answer for member in members for answer in member.answer]
    assert len(answers) == 2 * dp * sharding
    assert all(answer["gradients"] <= 1e-6 for answer in answers)
    assert all(answer["weights"] <= 1e-6 for answer in answers)
    assert all(answer["kept_right"] and answer["kept"] > 5 for answer in answers)
