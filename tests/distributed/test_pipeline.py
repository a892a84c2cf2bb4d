"""A pipeline of real processes trains as one process does."""

import numpy as np
import pytest

from tests.distributed.pipeline_member import STEPS, Case, train_whole
from tests.distributed.processes import run_cases

MEMBER = "tests.distributed.pipeline_member"

LOW_RANK = {"ffn": {"kind": "low_rank", "rank": 4}}
FACTORS = {**LOW_RANK, "attention_rank": 4, "embedding_rank": 5}
MOE = {"ffn": {"kind": "moe", "experts": 2}}
RECOMPUTE = {"use_recompute": True}

TWO = {
    "one micro batch": Case(pp=2, model=LOW_RANK),
    "two micro batches": Case(pp=2, pieces=2),
    "four micro batches": Case(pp=2, pieces=4, model=LOW_RANK),
    "five micro batches": Case(pp=2, pieces=5, model=FACTORS),
    "a smaller last micro batch": Case(pp=2, pieces=3),
    "recompute": Case(pp=2, pieces=4, model={**LOW_RANK, **RECOMPUTE}),
    "recompute of attention": Case(
        pp=2, pieces=4, model={**RECOMPUTE, "recompute_granularity": "full_attn"}
    ),
    "recompute of its core": Case(
        pp=2, pieces=4, model={**RECOMPUTE, "recompute_granularity": "core_attn"}
    ),
    "experts": Case(pp=2, pieces=4, model=MOE),
    "a masked token": Case(pp=2, pieces=4, model={"masked_token_id": 3}),
    "a merge on the way": Case(pp=2, pieces=4, model=FACTORS, merge_after=2),
}
FOUR = {
    "fewer micro batches than stages": Case(pp=4, pieces=2, model=LOW_RANK),
    "as many": Case(pp=4, pieces=4),
    "more": Case(pp=4, pieces=5, model=FACTORS),
    "one": Case(pp=4, pieces=1),
    "two data parallel pipelines": Case(pp=2, dp=2, pieces=5, model=LOW_RANK),
    "tensor parallel stages": Case(pp=2, mp=2, pieces=4),
    "tensor parallel stages of factors": Case(pp=2, mp=2, pieces=4, model=FACTORS),
    "stages that divide time": Case(
        pp=2, mp=2, sequence=True, pieces=3, model={**FACTORS, **RECOMPUTE}
    ),
}


@pytest.fixture(scope="module")
def of_two(tmp_path_factory):
    return run_cases([MEMBER], TWO, 2, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def of_four(tmp_path_factory):
    return run_cases([MEMBER], FOUR, 4, tmp_path_factory.mktemp("four"))


def check(case, ranks):
    """Losses, norms, gradients and weights of each process are the whole's; together they are all.

    So is the evaluation at the end.
    """
    whole = train_whole(case)
    for rank in ranks:
        for name in rank.keys() - {"copied"}:
            np.testing.assert_allclose(rank[name], whole[name], rtol=0, atol=1e-6, err_msg=name)
    assert set().union(*ranks) - {"copied"} == whole.keys()
    assert all(f"loss {step}" in rank for step in range(STEPS) for rank in ranks)


@pytest.mark.slow
@pytest.mark.parametrize("name", TWO)
def test_two_stages_train_as_one_process(name, of_two):
    check(TWO[name], of_two[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", FOUR)
def test_four_processes_train_as_one(name, of_four):
    check(FOUR[name], of_four[name])


@pytest.mark.slow
def test_both_ends_have_the_same_table_bit_by_bit(of_two, of_four):
    for name, ranks in {**of_two, **of_four}.items():
        copied = {str(each) for each in ranks[-1]["copied"]}
        assert copied == {each[7:] for each in ranks[-1] if each.startswith("weight:word_emb")}
        for each in copied:
            assert np.array_equal(ranks[0][f"weight:{each}"], ranks[-1][f"weight:{each}"]), name


@pytest.mark.slow
def test_no_weight_but_the_table_is_on_two_stages(of_four):
    held = [{each for each in rank if each.startswith("weight:")} for rank in of_four["more"]]
    twice = {each for each in held[0] if any(each in other for other in held[1:])}
    assert twice == {"weight:word_embeddings.left", "weight:word_embeddings.right"}
    assert sum(map(len, held)) == len(set().union(*held)) + len(twice)
