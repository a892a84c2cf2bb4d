"""Bytes between cards, counted by hand."""

from dataclasses import replace

import pytest

from fastffn_cli.distributed.layout import Layout
from fastffn_cli.distributed.traffic import Traffic, count_traffic, estimate_waiting
from fastffn_cli.engine.chips import Links
from fastffn_cli.engine.share import Share, count_share
from models.gpt import count_parameters
from tests.distributed.plans import TINY

D, LAYERS, TIME, VOCAB = 32, 4, 16, 96
PIECES = {"micro_batch_size": 3, "micro_batches": 5}
TOKENS = 3 * 5 * TIME


def traffic(stage=0, model=TINY, **layout):
    return count_traffic(model, TIME, Layout(**PIECES, **layout), stage)


def test_one_card_sends_nothing():
    assert traffic() == Traffic()
    assert traffic().total == 0


@pytest.mark.parametrize(("half", "width"), [(False, 4), (True, 2)])
def test_data_parallel_cards_all_reduce_the_gradients_once(half, width):
    sent = traffic(dp=4, half=half)
    assert sent.all_reduce == 2 * 3 / 4 * width * count_parameters(TINY)
    assert sent.total == sent.all_reduce


def test_shared_states_gather_weights_on_top_of_an_all_reduce():
    sent, plain = traffic(sharding_degree=4), traffic(dp=4)
    assert sent.all_reduce == plain.all_reduce
    assert sent.all_gather == plain.all_reduce / 2


def test_shared_gradients_are_reduced_and_shared_weights_gathered_each_micro_batch():
    one, two, three = (traffic(sharding_degree=4, sharding_stage=stage) for stage in (1, 2, 3))
    assert (two.all_reduce, two.all_gather) == (5 * one.all_reduce, one.all_gather)
    assert three.reduce_scatter == 5 * one.all_reduce / 2
    assert three.all_gather == 2 * 5 * one.all_gather


def test_sharding_within_data_parallelism_reduces_the_rest_of_each_part():
    weights = 4 * count_parameters(TINY)
    one, two = (traffic(dp=2, sharding_degree=2, sharding_stage=stage) for stage in (1, 2))
    assert one.all_gather == two.all_gather == weights / 2
    assert one.all_reduce == 2 * 3 / 4 * weights
    assert two.all_reduce == 5 * weights + weights / 2  # and 2 (k - 1) / k of a half


def test_tensor_parallel_cards_all_reduce_four_hidden_sizes_a_layer():
    assert traffic(mp=4).tensor == 2 * 3 / 4 * 4 * TOKENS * D * 4 * LAYERS


@pytest.mark.parametrize(
    ("granularity", "reduced"), [("full", 6), ("full_attn", 5), ("core_attn", 4)]
)
def test_recomputing_repeats_the_forward_all_reduces(granularity, reduced):
    model = replace(TINY, recompute_granularity=granularity)
    sent = traffic(mp=2, model=model, recompute=True)
    assert sent.tensor == 4 * TOKENS * D * reduced * LAYERS


def test_thin_factors_move_rank_sized_tensors():
    """768 wide and rank 8: 96 times fewer bytes for the feed-forwards."""
    wide = replace(TINY, hidden_size=768, ffn_hidden_size=3072, num_attention_heads=12)
    thin = replace(wide, ffn={"kind": "low_rank", "rank": 8})
    attention = 4 * TOKENS * 2 * 768 * LAYERS
    dense, cheap = (traffic(mp=2, model=model).tensor - attention for model in (wide, thin))
    assert dense == 4 * TOKENS * 2 * 768 * LAYERS
    assert cheap == 4 * TOKENS * 2 * 8 * LAYERS
    assert dense / cheap == 96


def test_factored_attention_moves_rank_sized_tensors_too():
    model = replace(TINY, ffn={"kind": "low_rank", "rank": 4}, attention_rank=8)
    assert traffic(mp=2, model=model).tensor == 4 * TOKENS * LAYERS * 2 * (4 + 8)


def test_sequence_parallelism_adds_gradients_and_both_ends():
    plain, shared = (traffic(mp=2, sequence_parallel=on) for on in (False, True))
    per_layer = 4 * D + 2 * D  # norms, and the biases behind split inputs
    whole = LAYERS * per_layer + 2 * D  # and the last norm
    # What goes into the head is gathered, and the embeddings' gradient: halves of an all-reduce.
    assert shared.tensor - plain.tensor == 4 * whole + 2 * 4 * TOKENS * D / 2


def test_sequence_parallel_stages_have_an_end_each():
    first, last = (
        traffic(stage, mp=2, pp=2, sequence_parallel=True).tensor
        - traffic(stage, mp=2, pp=2).tensor
        for stage in (0, 1)
    )
    assert first == 4 * (LAYERS // 2 * 6 * D) + 4 * TOKENS * D / 2
    assert last - first == 4 * 2 * D  # the last norm


def test_a_pipeline_sends_activations_and_gradients_to_its_neighbours():
    sent = [traffic(stage, pp=4) for stage in range(4)]
    swaps = [5 + 3, 5 + 2, 5 + 1]  # of the links: five micro batches, and those that fill it
    one = 4 * TOKENS // 5 * D
    sums = [swaps[0], swaps[0] + swaps[1], swaps[1] + swaps[2], swaps[2]]
    assert [each.pipeline for each in sent] == [count * one for count in sums]
    assert [each.tied for each in sent] == [4 * VOCAB * D, 0, 0, 4 * VOCAB * D]


def test_each_stage_reduces_its_own_weights():
    sent = [traffic(stage, pp=2, dp=2).all_reduce for stage in range(2)]
    held = [count_share(TINY, Share(first, first + 2)) for first in (0, 2)]
    assert sent == [4 * count for count in held]


def test_groups_within_a_node_use_its_links():
    links = Links("test", within=100.0, between=10.0, cards_per_node=8, share=0.5, source="")
    sent = Traffic(all_reduce=50, reduce_scatter=20, all_gather=30, tensor=500, tied=5)
    inside = Layout(dp=1, sharding_degree=2, mp=2, pp=2, micro_batches=5)
    waiting = estimate_waiting(sent, inside, links)
    assert waiting.micro_batch == 500 / 50 / 5
    assert waiting.step == (50 + 20 + 30 + 5) / 50
    outside = estimate_waiting(sent, replace(inside, dp=2), links)
    assert outside.step == 50 / 5 + (20 + 30 + 5) / 50
    far = estimate_waiting(sent, replace(inside, sharding_degree=8), links)
    assert far.micro_batch == waiting.micro_batch
    assert far.step == (50 + 20 + 30 + 5) / 5
