import numpy as np
import pytest

from fastffn_cli.errors import Diverged, UserError
from fastffn_cli.generation.sampling import (
    SamplingOptions,
    draw,
    keep_top_k,
    keep_top_p,
    penalize_repetition,
    pick_token,
    random_stream,
    softmax,
)

LOGITS = np.array([0.5, 2.0, -1.0, 1.0, 0.0, -3.0])


def pick(logits=LOGITS, *, uniform=0.5, sequence=(), num_new=5, eos_id=None, **options):
    return pick_token(
        logits,
        SamplingOptions(**options),
        sequence=list(sequence),
        num_new=num_new,
        eos_id=eos_id,
        uniform=uniform,
    )


def counts_of(draws, **options):
    random = np.random.default_rng(7)
    tokens = [pick(uniform=random.random(), **options) for _ in range(draws)]
    return np.bincount(tokens, minlength=LOGITS.size)


def chi_square(observed, probabilities):
    expected = probabilities * observed.sum()
    return float((((observed - expected) ** 2) / expected).sum())


def test_plain_sampling_follows_the_softmax():
    # 5 degrees of freedom: a right sampler exceeds 20.5 in one of a thousand seeds; ours is fixed.
    assert chi_square(counts_of(20000), softmax(LOGITS)) < 20.5


def test_temperature_follows_the_softmax_of_the_divided_logits():
    observed = counts_of(20000, temperature=2.0)
    assert chi_square(observed, softmax(LOGITS / 2.0)) < 20.5
    assert chi_square(observed, softmax(LOGITS)) > 200  # and the test can tell the two apart


def test_top_k_one_is_greedy():
    random = np.random.default_rng(0)
    for _ in range(50):
        logits = random.normal(size=40)
        greedy = pick(logits, decode_strategy="greedy_search")
        assert pick(logits, uniform=random.random(), top_k=1) == greedy == logits.argmax()


def test_top_k_draws_only_from_the_k_likeliest():
    assert set(np.flatnonzero(counts_of(2000, top_k=3))) == {0, 1, 3}


def test_top_k_keeps_ties_with_the_last_one():
    kept = keep_top_k(np.array([0.4, 0.2, 0.2, 0.1, 0.1]), 2)
    assert kept.tolist() == [0.4, 0.2, 0.2, 0.0, 0.0]


@pytest.mark.parametrize("k", [0, 5, 9])
def test_top_k_of_zero_or_the_whole_vocabulary_changes_nothing(k):
    probabilities = np.array([0.4, 0.2, 0.2, 0.1, 0.1])
    assert keep_top_k(probabilities, k).tolist() == probabilities.tolist()


@pytest.mark.parametrize(
    ("p", "kept"),
    [(0.01, {0}), (0.45, {0}), (0.55, {0, 2}), (0.85, {0, 2, 1}), (1.0, {0, 1, 2, 3})],
)
def test_top_p_keeps_tokens_until_their_sum_exceeds_p(p, kept):
    probabilities = np.array([0.5, 0.125, 0.25, 0.125])
    assert set(np.flatnonzero(keep_top_p(probabilities, p))) == kept


def test_top_p_counts_shares_of_the_distribution_before_top_k():
    # The two likeliest hold 0.5 of all: FleetX keeps both at top_p 0.4 (0.3 < 0.4); after
    # renormalising to 0.6 and 0.4 the first alone would do.
    probabilities = keep_top_k(np.array([0.3, 0.2, 0.15, 0.15, 0.1, 0.1]), 2)
    assert set(np.flatnonzero(keep_top_p(probabilities, 0.4))) == {0, 1}


def test_repetition_penalty_counts_each_token_once_and_respects_the_sign():
    scores = np.array([2.0, -2.0, 1.0, 0.0])
    penalized = penalize_repetition(scores, [0, 0, 0, 1], 1.25)
    assert penalized.tolist() == [1.6, -2.5, 1.0, 0.0]
    assert scores.tolist() == [2.0, -2.0, 1.0, 0.0]


def test_repetition_penalty_looks_at_the_whole_sequence():
    sequence = [1, 4, 4, 4]  # the likeliest token stands at the far end
    options = {"decode_strategy": "greedy_search", "repetition_penalty": 4.0}
    assert pick(sequence=sequence, **options) == 3


def test_eos_cannot_come_before_the_minimum_length():
    options = {"decode_strategy": "greedy_search", "eos_id": 1, "min_dec_len": 3}
    assert [pick(num_new=number, **options) for number in range(5)] == [3, 3, 3, 1, 1]


def test_draw_never_picks_a_token_of_probability_zero():
    probabilities = np.array([0.0, 0.25, 0.0, 0.75, 0.0])
    uniforms = [0.0, 0.2499, 0.25, 0.9, np.nextafter(1.0, 0.0)]
    assert [draw(probabilities, uniform) for uniform in uniforms] == [1, 1, 3, 3, 3]


def test_random_streams_repeat_and_differ():
    first = random_stream(3, 0, 0).random(4).tolist()
    assert random_stream(3, 0, 0).random(4).tolist() == first
    others = [random_stream(*key).random(4).tolist() for key in ((4, 0, 0), (3, 1, 0), (3, 0, 1))]
    assert first not in others


def test_scores_that_are_no_numbers_are_an_error():
    with pytest.raises(Diverged, match="not finite"):
        pick(np.array([np.nan, 1.0]))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": 0.0}, "--temperature must be above 0; --greedy"),
        ({"top_k": -1}, "--top-k"),
        ({"top_p": 0.0}, "--top-p"),
        ({"top_p": 1.5}, "--top-p"),
        ({"max_dec_len": 0}, "--max-tokens"),
        ({"repetition_penalty": 0.0}, "--repetition-penalty"),
        ({"num_return_sequences": 0}, "--num-return-sequences"),
        ({"seed": -1}, "--seed"),
        ({"min_dec_len": 9, "max_dec_len": 8}, "--min-tokens 9 is more than --max-tokens 8"),
    ],
)
def test_options_out_of_range_name_what_to_type(options, words):
    with pytest.raises(UserError, match=words):
        SamplingOptions(**options)
