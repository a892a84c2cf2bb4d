"""Plans on paper: one card is what training estimates, 32 are MindFormers' 13B, more is less."""

from dataclasses import replace

import pytest

from fastffn_cli.distributed.layout import Layout
from fastffn_cli.distributed.planner import (
    card_memory,
    estimate_card,
    fullest_stage,
    largest_micro_batch,
)
from fastffn_cli.engine.chips import CHIPS, UNLIMITED
from fastffn_cli.engine.memory import estimate_memory
from fastffn_cli.engine.roofline import estimate_step
from fastffn_cli.engine.share import Share
from fastffn_cli.errors import ConfigError
from models.gpt import GPTConfig, count_parameters
from tests.distributed.plans import GPT_13B, LAYOUT_13B, TINY

# Narayanan et al. 2021 (arXiv:2104.04473), table 1: A100s, sequences of 2048, 51,200 tokens.
# Heads, hidden size, layers; tensor and pipeline degree, cards, sequences; TFLOP/s a card.
MEASURED = [
    (24, 2304, 24, 1, 1, 32, 512, 137),
    (32, 3072, 30, 2, 1, 64, 512, 138),
    (32, 4096, 36, 4, 1, 128, 512, 142),
    (48, 6144, 40, 8, 1, 256, 1024, 135),
    (64, 8192, 48, 8, 2, 512, 1536, 138),
    (80, 10240, 60, 8, 4, 1024, 1792, 140),
    (96, 12288, 80, 8, 8, 1536, 2304, 148),
]


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("ffn", [{"kind": "dense"}, {"kind": "low_rank", "rank": 8}], ids=str)
def test_one_card_is_what_training_estimates(half, recompute, ffn):
    model = replace(TINY, ffn=ffn)
    layout = Layout(micro_batch_size=3, micro_batches=5, half=half, recompute=recompute)
    plan = estimate_card(model, 16, layout, CHIPS["A100"])
    alone = replace(model, use_recompute=recompute)
    assert plan.memory == estimate_memory(alone, 16, half=half).total(3)
    assert plan.parameters == plan.model_parameters == count_parameters(model)
    assert plan.traffic.total == plan.bubble == plan.speed.waiting_s == 0
    step = estimate_step(
        alone, CHIPS["A100"], seq_len=16, micro_batch_size=3, accumulate_steps=5
    ).total
    assert plan.speed.step_s == pytest.approx(step)
    assert plan.speed.tokens_per_s == pytest.approx(3 * 5 * 16 / step)


def test_the_13b_model_fits_into_31_gb_in_the_layout_of_its_authors():
    plan = estimate_card(GPT_13B, 1024, LAYOUT_13B)
    assert plan.model_parameters == 12_848_143_360
    layer = 12 * 5120**2 // 2 + 7 * 5120 // 2 + 6 * 5120
    # The table is whole on every card.
    parameters = 10 * layer + (50257 + 1024) * 5120
    assert (plan.stage, plan.parameters) == (0, parameters)
    assert plan.fixed.weights == plan.fixed.gradients == 2 * parameters
    assert plan.fixed.optimizer == 14 * parameters / 4
    assert plan.bubble == pytest.approx(3 / 27)
    assert 14e9 < plan.memory < 31e9
    assert plan.remarks == ()
    assert plan.speed is None
    tokens = 24 * 2 * 1024
    assert plan.traffic.tensor == 10 * 6 * tokens * 5120 * 2
    assert plan.traffic.pipeline == (24 + 3) * 2 * 1024 * 5120 * 4


def test_without_any_parallelism_the_13b_model_needs_hundreds_of_gb():
    alone = replace(LAYOUT_13B, mp=1, pp=1, sharding_degree=1, micro_batches=96)
    assert card_memory(GPT_13B, 1024, alone) > 18 * 12_848_143_360


@pytest.mark.parametrize(
    "more",
    [
        {"recompute": True},
        {"sharding_degree": 2},
        {"sharding_degree": 4},
        {"sharding_degree": 4, "sharding_stage": 2},
        {"sharding_degree": 4, "sharding_stage": 3},
        {"mp": 2},
        {"mp": 4},
        {"mp": 4, "sequence_parallel": True},
    ],
    ids=str,
)
def test_each_mechanism_needs_less_memory_than_the_run_without_it(more):
    wide = replace(GPT_13B, num_layers=4)
    base = Layout(micro_batch_size=2, micro_batches=8)
    weaker = {
        "mp": {**more, "mp": more.get("mp", 1) // 2} if more.get("mp", 1) > 2 else {},
        "sharding_stage": {**more, "sharding_stage": more.get("sharding_stage", 1) - 1},
    }
    last = list(more)[-1]
    less = weaker.get(last, {key: value for key, value in more.items() if key != last})
    assert card_memory(wide, 1024, replace(base, **more)) < card_memory(
        wide, 1024, replace(base, **less)
    )


def test_longer_pipelines_hold_less_of_the_model_and_wait_longer():
    plans = [
        estimate_card(GPT_13B, 1024, replace(LAYOUT_13B, pp=pp), CHIPS["V100"])
        for pp in (1, 2, 4, 8)
    ]
    assert [plan.parameters for plan in plans] == sorted(
        (plan.parameters for plan in plans), reverse=True
    )
    assert [plan.bubble for plan in plans] == [0, 1 / 25, 3 / 27, 7 / 31]


def test_more_micro_batches_shrink_the_bubble_and_raise_the_speed():
    plans = [
        estimate_card(GPT_13B, 1024, replace(LAYOUT_13B, micro_batches=m), CHIPS["V100"])
        for m in (4, 8, 24)
    ]
    speeds = [plan.speed.tokens_per_s for plan in plans]
    assert speeds == sorted(speeds)
    assert plans[0].bubble > plans[1].bubble > plans[2].bubble
    # Four micro batches are under way at the most.
    assert len({plan.memory for plan in plans}) == 1


def test_data_parallel_cards_add_up_but_for_what_they_wait():
    one, four = (
        estimate_card(TINY, 16, Layout(dp=dp, micro_batch_size=8), CHIPS["A100"]) for dp in (1, 4)
    )
    assert one.memory == four.memory
    assert 1 < four.speed.tokens_per_s / one.speed.tokens_per_s < 4
    ways = four.speed.step_s - one.speed.step_s
    assert ways == pytest.approx(four.speed.waiting_s)


def test_the_slowest_stage_sets_the_pace_of_all_turns_and_one_update_follows():
    chip = replace(CHIPS["A100"], links=UNLIMITED)
    layout = Layout(pp=2, sharding_degree=2, micro_batch_size=3, micro_batches=5)
    # Without sharding an update of the first stage moves 28 bytes for each of its parameters.
    first, last = (
        estimate_step(TINY, chip, seq_len=16, micro_batch_size=3, share=Share(begin, begin + 2))
        for begin in (0, 2)
    )
    assert last.head > 0 and first.head == 0
    assert first.ffn == pytest.approx(last.ffn)
    update = max(first.optimizer, last.optimizer) / 2
    speed = estimate_card(TINY, 16, layout, chip).speed
    assert speed.step_s == pytest.approx((5 + 1) * (last.total - last.optimizer) + update)
    assert speed.waiting_s == 0


def test_the_first_stage_is_the_fullest_where_activations_wait_there():
    assert fullest_stage(GPT_13B, 1024, LAYOUT_13B) == 0
    short = replace(GPT_13B, vocab_size=400_000)
    # Of many tokens the logits weigh more than what the first stage keeps.
    assert fullest_stage(short, 1024, replace(LAYOUT_13B, micro_batches=1)) == 3


def test_the_largest_micro_batch_fits_and_the_next_one_does_not():
    room = 31 * 10**9
    size = largest_micro_batch(GPT_13B, 1024, LAYOUT_13B, room)
    assert 48 % size == 0
    for other, fits in ((size, True), (48, False)):
        layout = replace(LAYOUT_13B, micro_batch_size=other, micro_batches=48 // other)
        assert (card_memory(GPT_13B, 1024, layout) <= room) is fits
    assert largest_micro_batch(GPT_13B, 1024, LAYOUT_13B, 10**9) is None
    assert largest_micro_batch(GPT_13B, 1024, LAYOUT_13B, 10**12) == 48


@pytest.mark.parametrize("row", MEASURED, ids=lambda row: f"{row[1]}x{row[2]}")
def test_speed_is_within_a_quarter_of_what_megatron_measured_on_up_to_1536_cards(row):
    heads, width, layers, mp, pp, cards, batch, measured = row
    model = GPTConfig(
        vocab_size=51200,
        hidden_size=width,
        num_layers=layers,
        num_attention_heads=heads,
        ffn_hidden_size=4 * width,
        max_position_embeddings=2048,
    )
    dp = cards // (mp * pp)
    layout = Layout(dp=dp, mp=mp, pp=pp, micro_batches=batch // dp, recompute=True, half=True)
    plan = estimate_card(model, 2048, layout, CHIPS["A100"])
    # The paper's count of FLOPs, recomputation included.
    flops = 96 * batch * 2048 * layers * width**2
    flops *= 1 + 2048 / (6 * width) + 51200 / (16 * layers * width)
    # There the cards split the head as well.
    assert 0.75 < flops / plan.speed.step_s / cards / 1e12 / measured < 1
    assert plan.memory < 80e9


def test_feed_forwards_whose_time_cannot_be_estimated_are_planned_without_speed():
    plan = estimate_card(
        replace(TINY, ffn={"kind": "moe", "experts": 4}), 16, Layout(dp=2), CHIPS["A100"]
    )
    assert plan.speed is None
    assert plan.remarks[0].startswith("no speed: ")
    assert plan.memory > 0


def test_a_layout_that_the_model_does_not_allow_is_refused():
    with pytest.raises(ConfigError, match="mp_degree 3"):
        estimate_card(TINY, 16, Layout(mp=3))
