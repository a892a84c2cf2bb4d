"""A layout against the model and the number of cards: every problem, with what to type."""

from dataclasses import replace

import pytest

from fastffn_cli.distributed.layout import Layout, check_layout, find_problems
from fastffn_cli.errors import ConfigError
from tests.distributed.plans import GPT_13B, LAYOUT_13B, TINY


def problems(layout, cards=None, model=TINY, seq_len=16):
    return find_problems(model, seq_len, layout, cards)


def test_the_13b_layout_is_of_32_cards_and_192_sequences():
    assert LAYOUT_13B.cards == 32
    assert LAYOUT_13B.global_batch == 192
    assert problems(LAYOUT_13B, 32, GPT_13B, 1024) == []
    assert LAYOUT_13B.describe() == (
        "sharding 4 x mp 2 x pp 4 (stage 1), 24 x 2 sequences, recompute"
    )
    assert Layout().describe() == "one card, 1 x 1 sequences"


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        (
            Layout(mp=3),
            [
                "mp_degree 3 does not divide num_attention_heads 4: set mp_degree to 2",
                "mp_degree 3 does not divide the 128 hidden units of the feed-forwards: set "
                "mp_degree to 2, or ffn_hidden_size to 129",
            ],
        ),
        (
            Layout(pp=3),
            ["pp_degree 3 does not divide num_layers 4: set pp_degree to 2, or num_layers to 6"],
        ),
        (
            Layout(sequence_parallel=True),
            [
                "sequence_parallel divides time among tensor parallel cards, and mp_degree is 1: "
                "set sequence_parallel to false, or mp_degree above 1"
            ],
        ),
        (
            Layout(pp=2, sharding_degree=2, sharding_stage=3),
            [
                "sharding_stage 3 does not go with pp_degree 2, where gradients of several micro "
                "batches are under way: set sharding_stage to 1"
            ],
        ),
        (
            Layout(dp=0, micro_batches=0, sharding_stage=4),
            [
                "dp_degree 0 is below 1: set it to 1",
                "accumulate_steps 0 is below 1: set it to 1",
                "sharding_stage 4 is none of 1, 2, 3: set it to 1",
            ],
        ),
    ],
)
def test_every_problem_says_what_to_type(layout, expected):
    assert problems(layout) == expected


def test_a_time_that_tensor_parallel_cards_do_not_divide():
    (problem,) = problems(Layout(mp=4, sequence_parallel=True), seq_len=15)
    assert problem == (
        "mp_degree 4 does not divide max_seq_len 15: set sequence_parallel to false, or "
        "max_seq_len to 12"
    )


def test_kinds_that_are_not_split_and_widths_that_do_not_divide():
    monarch = replace(TINY, ffn={"kind": "monarch", "blocks": 4, "dense_layers": [0]})
    (problem,) = problems(Layout(mp=2), model=monarch)
    assert problem == (
        "feed-forwards of kind monarch are not split among cards: set mp_degree to 1, or "
        "Model.ffn.kind to dense, low_rank, low_rank_activation, narrow or thin"
    )
    thin = replace(TINY, ffn={"kind": "thin", "rank": 4, "width": 18})
    (problem,) = problems(Layout(mp=4), model=thin)
    assert problem.endswith("set mp_degree to 3, or Model.ffn.width to 20")


def test_the_cards_are_all_used():
    (problem,) = problems(Layout(dp=2, mp=2), cards=12)
    assert problem == (
        "dp_degree 2 x sharding_degree 1 x mp_degree 2 x pp_degree 1 = 4 cards, and there are 12: "
        "set dp_degree to 6"
    )
    (problem,) = problems(Layout(mp=2), cards=7)
    assert problem.endswith("set another degree: they multiply to 2")


def test_problems_are_reported_together():
    with pytest.raises(ConfigError) as caught:
        check_layout(TINY, 16, Layout(mp=3, pp=3), 8)
    assert len(caught.value.problems) == 4
