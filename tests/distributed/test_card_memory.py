"""The memory estimate of a card against what real processes take: cases of `benchmarks/memory`."""

from __future__ import annotations

import pytest

from benchmarks.memory import ONE_CARD, TWO_CARDS, Case, Measured, measure_tensors
from fastffn_cli.distributed.layout import Layout
from fastffn_cli.engine.memory import count_fixed
from models.gpt import GPTConfig, count_parameters

pytestmark = pytest.mark.slow

TOLERANCE = 0.2
# Whole parameters are dealt out to the processes that share them.
MOMENTS_TOLERANCE = 0.05


@pytest.fixture(scope="module")
def one_card() -> dict[str, Measured]:
    return dict(zip((case.name for case in ONE_CARD), measure_tensors(ONE_CARD), strict=True))


@pytest.fixture(scope="module")
def two_cards() -> dict[str, Measured]:
    return dict(zip((case.name for case in TWO_CARDS), measure_tensors(TWO_CARDS, 2), strict=True))


@pytest.mark.parametrize("case", ONE_CARD, ids=lambda case: case.name)
def test_the_estimate_of_one_card_is_within_20_percent(
    one_card: dict[str, Measured], case: Case
) -> None:
    assert one_card[case.name].ratio == pytest.approx(1.0, abs=TOLERANCE)


@pytest.mark.parametrize("case", TWO_CARDS, ids=lambda case: case.name)
def test_the_estimate_of_the_fullest_of_two_cards_is_within_20_percent(
    two_cards: dict[str, Measured], case: Case
) -> None:
    assert two_cards[case.name].ratio == pytest.approx(1.0, abs=TOLERANCE)


@pytest.mark.parametrize("case", TWO_CARDS, ids=lambda case: case.name)
def test_the_optimizers_state_of_a_card_is_its_share(
    two_cards: dict[str, Measured], case: Case
) -> None:
    measured = two_cards[case.name]
    assert measured.moments_estimate == pytest.approx(measured.moments, rel=MOMENTS_TOLERANCE)


def test_two_cards_take_less_than_one_where_the_layout_divides(
    two_cards: dict[str, Measured],
) -> None:
    whole = Case("one", {"micro_batch_size": 4})
    (alone,) = measure_tensors([whole])
    assert two_cards["sharding 2"].peak < alone.peak - 0.4 * alone.moments
    assert two_cards["mp 2"].peak < 0.7 * alone.peak


def test_13b_on_32_cards_counts_every_weight_once() -> None:
    model = GPTConfig(
        vocab_size=50257, hidden_size=5120, num_layers=40, num_attention_heads=40,
        ffn_hidden_size=20480, hidden_act="fast_gelu",
    )  # fmt: skip
    layout = Layout(sharding_degree=4, mp=2, pp=4, micro_batch_size=2, micro_batches=24, half=True)
    shares = [layout.share(model, stage) for stage in range(4)]
    state = sum(4 * 2 * count_fixed(model, half=True, share=share).optimizer for share in shares)
    assert count_parameters(model) == 12_848_143_360
    # Whole on both tensor parallel cards: the table (50257 is odd) and its copy of the head, the
    # positions, and what is D wide.
    table, width = 50257 * 5120, 5120
    twice = 2 * table + 1024 * width + 40 * 6 * width + 2 * width
    assert state == pytest.approx(14 * (12_848_143_360 + table + twice), rel=1e-6)
