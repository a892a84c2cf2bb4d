"""Layouts proposed for cards: they fit, they are valid, the best is first."""

from dataclasses import replace
from itertools import pairwise

import pytest

from fastffn_cli.distributed.cards import parse_cards
from fastffn_cli.distributed.layout import find_problems
from fastffn_cli.distributed.plan_text import COLUMNS, overrides, proposal_rows
from fastffn_cli.distributed.planner import card_memory, estimate_card
from fastffn_cli.distributed.proposals import propose
from fastffn_cli.engine.chips import CHIPS
from fastffn_cli.errors import UserError
from tests.distributed.plans import GPT_13B, LAYOUT_13B, TINY

ROOM = int(0.9 * 32 * 2**30)


@pytest.fixture(scope="module")
def plans():
    return propose(GPT_13B, 1024, 32, ROOM, 192, CHIPS["V100"])


def test_all_proposals_fit_and_are_valid(plans):
    assert len(plans) > 5
    for plan in plans:
        assert plan.memory == card_memory(GPT_13B, 1024, plan.layout) <= ROOM
        assert find_problems(GPT_13B, 1024, plan.layout, 32) == []
        assert plan.layout.global_batch == 192
        assert plan.layout.mp <= 8


def test_the_fastest_comes_first(plans):
    speeds = [plan.speed.tokens_per_s for plan in plans]
    for faster, slower in pairwise(speeds):
        assert round(faster) >= round(slower)


def test_each_set_of_degrees_comes_once(plans):
    degrees = [(p.layout.dp, p.layout.sharding_degree, p.layout.mp, p.layout.pp) for p in plans]
    assert len(set(degrees)) == len(degrees)


def test_the_authors_degrees_are_proposed_and_no_slower_than_their_layout(plans):
    wanted = (LAYOUT_13B.sharding_degree, LAYOUT_13B.mp, LAYOUT_13B.pp)
    (same,) = [p for p in plans if (p.layout.sharding_degree, p.layout.mp, p.layout.pp) == wanted]
    theirs = estimate_card(GPT_13B, 1024, LAYOUT_13B, CHIPS["V100"])
    assert same.speed.tokens_per_s >= theirs.speed.tokens_per_s


def test_less_memory_never_gives_a_faster_run(plans):
    tight = propose(GPT_13B, 1024, 32, ROOM // 2, 192, CHIPS["V100"])
    best = max(plan.speed.tokens_per_s for plan in tight)
    assert best <= max(plan.speed.tokens_per_s for plan in plans)
    assert propose(GPT_13B, 1024, 32, 2**30, 192, CHIPS["V100"]) == []


def test_a_small_model_stays_simple():
    best = propose(TINY, 16, 1, ROOM, 8, CHIPS["A100"])[0].layout
    assert (best.cards, best.recompute, best.sequence_parallel) == (1, False, False)
    assert best.micro_batches == 1


def test_without_sequence_parallelism_none_is_proposed():
    for plan in propose(TINY, 16, 4, ROOM, 8, CHIPS["A100"], sequence_parallel=False):
        assert not plan.layout.sequence_parallel


def test_only_what_divides_the_batch_and_the_model_is_proposed():
    for plan in propose(TINY, 16, 6, ROOM, 6, CHIPS["A100"]):
        assert plan.layout.mp in (1, 2)
        assert plan.layout.pp in (1, 2)
        assert plan.layout.data in (3, 6)


def test_a_model_whose_time_cannot_be_estimated_is_refused():
    with pytest.raises(UserError, match="cannot be ranked"):
        propose(replace(TINY, ffn={"kind": "guided"}), 16, 4, ROOM, 8, CHIPS["A100"])


def test_rows_have_a_cell_a_column(plans):
    assert {len(row) for row in proposal_rows(plans)} == {len(COLUMNS)}


def test_the_words_to_type_name_every_degree():
    assert overrides(estimate_card(GPT_13B, 1024, LAYOUT_13B)) == [
        "Distributed.dp_degree=1",
        "Distributed.mp_degree=2",
        "Distributed.pp_degree=4",
        "Distributed.sharding.sharding_degree=4",
        "Distributed.sharding.sharding_stage=1",
        "Data.batch_size.micro_batch_size=2",
        "Distributed.sequence_parallel=false",
        "Model.use_recompute=true",
    ]
    sliced = replace(LAYOUT_13B, sequence_parallel=True)
    assert "Distributed.sequence_parallel=true" in overrides(estimate_card(GPT_13B, 1024, sliced))


@pytest.mark.parametrize(
    ("text", "count", "gib", "chip"),
    [
        ("32x32GB", 32, 32, "V100"),
        ("8 x 80g", 8, 80, "A100"),
        ("4x64GiB", 4, 64, "910B"),
        ("16x64GB:910b", 16, 64, "910B"),
        ("1x141GB", 1, 141, "H200"),
        ("1x192GB", 1, 192, "H200"),
        ("2x0.5GB", 2, 0.5, "V100"),
    ],
)
def test_cards_are_read(text, count, gib, chip):
    cards = parse_cards(text)
    assert (cards.count, cards.memory_bytes, cards.chip.name) == (count, gib * 2**30, chip)


@pytest.mark.parametrize("text", ["", "32", "32GB", "0x32GB", "4x0GB", "4x32MB", "-1x32GB"])
def test_other_words_are_refused_with_an_example(text):
    with pytest.raises(UserError) as caught:
        parse_cards(text)
    assert "--plan 32x32GB" in caught.value.hint


def test_an_unknown_chip_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match="'TPU'") as caught:
        parse_cards("4x32GB:TPU")
    assert "910B" in caught.value.hint
