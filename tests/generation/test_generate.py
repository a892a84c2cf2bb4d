from dataclasses import replace

import numpy as np
import pytest

from fastffn_cli.errors import DataError, UserError
from fastffn_cli.generation import generate as module
from fastffn_cli.generation.generate import generate, iterate_generations
from fastffn_cli.generation.sampling import SamplingOptions
from models.gpt import GPT
from tests.fleetx_models import load_arrays, load_small

GREEDY = SamplingOptions(decode_strategy="greedy_search", min_dec_len=1, max_dec_len=12)
SAMPLING = SamplingOptions(max_dec_len=16, top_k=40, seed=11)
PROMPTS = [[66, 85, 8], [95], [116, 65, 52, 83, 96, 3, 7], [5, 4, 3, 2]]


@pytest.fixture(scope="module")
def model():
    return load_small()


def tokens_of(generations):
    return [each.tokens for each in generations]


def test_logits_are_those_of_fleetx(model):
    import paddle

    expected = load_arrays("A_forward.npz")
    with paddle.no_grad():
        logits = model(paddle.to_tensor(expected["input_ids"])).numpy()
    assert np.abs(logits - expected["logits_eval"]).max() <= 2e-5


@pytest.mark.parametrize("prompt", ["p1", "p3"])
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_ids_are_those_of_fleetx(model, prompt, penalty):
    arrays = load_arrays("A_generate.npz")
    variant = "" if penalty == 1.0 else f".rep{penalty}"
    options = replace(GREEDY, repetition_penalty=penalty)
    found = generate(model, arrays[f"{prompt}.prompt"].tolist(), options)
    assert tokens_of(found) == arrays[f"step_0.{prompt}{variant}.ids"].tolist()


@pytest.mark.parametrize("minimum", [1, 8])
@pytest.mark.parametrize(("prompt", "eos_id"), [("p1", 49), ("p3", 68)])
def test_end_of_text_and_minimum_length_are_those_of_fleetx(model, prompt, eos_id, minimum):
    arrays = load_arrays("A_generate.npz")
    options = replace(GREEDY, min_dec_len=minimum)
    found = generate(model, arrays[f"{prompt}.prompt"].tolist(), options, eos_id=eos_id)
    for each, ids in zip(
        found, arrays[f"step_0.{prompt}.eos{eos_id}.min{minimum}.ids"].tolist(), strict=True
    ):
        # FleetX goes on writing eos until the last sequence of the batch has ended.
        kept = ids[: ids.index(eos_id) + 1] if eos_id in ids else ids
        assert each.tokens == kept
        assert each.finish_reason == ("eos" if eos_id in ids else "length")


def test_top_k_one_is_greedy(model):
    options = replace(SAMPLING, top_k=1, max_dec_len=12)
    assert tokens_of(generate(model, PROMPTS, options)) == tokens_of(
        generate(model, PROMPTS, GREEDY)
    )


@pytest.mark.parametrize("options", [replace(GREEDY, max_dec_len=50), SAMPLING])
def test_with_and_without_cache_token_for_token(model, options):
    cached = generate(model, PROMPTS, options, eos_id=127)
    assert cached == generate(model, PROMPTS, options, eos_id=127, use_cache=False)
    assert max(len(each.tokens) for each in cached) == options.max_dec_len


def test_a_batch_of_unequal_prompts_gives_what_each_gets_alone(model):
    together = generate(model, PROMPTS, replace(GREEDY, max_dec_len=40, repetition_penalty=1.2))
    for prompt, each in zip(PROMPTS, together, strict=True):
        alone = generate(model, [prompt], replace(GREEDY, max_dec_len=40, repetition_penalty=1.2))
        assert alone[0].tokens == each.tokens


def test_a_hidden_token_is_hidden_with_cache_without_and_in_any_batch(model):
    """Prompts begin, go on and end with it: the row of an end is read, and must not see padding."""
    hidden = 9
    masking = GPT(replace(model.config, masked_token_id=hidden))
    masking.set_state_dict(model.state_dict())
    prompts = [[hidden], [66, 85, hidden], [hidden, 95, 7], [3, hidden, 52, 83, 96, 3, 7], [1, 2]]
    options = replace(GREEDY, max_dec_len=30, num_return_sequences=2)
    together = tokens_of(generate(masking, prompts, options))
    assert together == tokens_of(generate(masking, prompts, options, use_cache=False))
    for index, prompt in enumerate(prompts):
        assert tokens_of(generate(masking, [prompt], options))[0] == together[2 * index]
    assert together != tokens_of(generate(model, prompts, options))


def test_sequences_that_end_early_leave_the_others_unchanged(model):
    free = generate(model, PROMPTS, GREEDY)
    eos_id = free[0].tokens[3]
    ended = generate(model, PROMPTS, GREEDY, eos_id=eos_id)
    assert any(each.finish_reason == "eos" and len(each.tokens) < 12 for each in ended)
    for before, after in zip(free, ended, strict=True):
        if eos_id not in before.tokens:
            assert after == before


def test_the_same_seed_repeats_and_another_one_differs(model):
    first = generate(model, PROMPTS, SAMPLING)
    assert generate(model, PROMPTS, SAMPLING) == first
    assert tokens_of(generate(model, PROMPTS, replace(SAMPLING, seed=12))) != tokens_of(first)


def test_returned_sequences_come_in_order_and_differ(model):
    found = generate(model, PROMPTS[:2], replace(SAMPLING, num_return_sequences=3))
    places = [(each.prompt_index, each.sequence_index) for each in found]
    assert places == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert len({tuple(each.tokens) for each in found[:3]}) == 3
    assert tokens_of(found)[::3] == tokens_of(generate(model, PROMPTS[:2], SAMPLING))


def test_small_batches_give_the_same_as_one(model, monkeypatch):
    options = replace(SAMPLING, num_return_sequences=2)
    expected = generate(model, PROMPTS, options)
    token_bytes = 2 * 4 * model.config.num_layers * model.config.hidden_size
    monkeypatch.setattr(module, "CACHE_BYTES", 3 * 23 * token_bytes)
    sizes = []
    new_cache = model.new_cache
    monkeypatch.setattr(
        model,
        "new_cache",
        lambda batch, capacity: sizes.append(batch) or new_cache(batch, capacity),
    )
    assert generate(model, PROMPTS, options) == expected
    assert len(sizes) > 2


def test_finished_batches_arrive_before_the_next_one_starts(model, monkeypatch):
    monkeypatch.setattr(module, "LARGEST_BATCH", 1)
    seen = []
    stream = iterate_generations(
        model, PROMPTS, GREEDY, on_token=lambda prompt, _sequence, _token: seen.append(prompt)
    )
    next(stream)
    assert set(seen) == {0}


def test_tokens_are_announced_as_they_come_without_the_end(model):
    announced = {}
    found = generate(
        model, PROMPTS, GREEDY, eos_id=generate(model, PROMPTS, GREEDY)[0].tokens[3],
        on_token=lambda prompt, _sequence, token: announced.setdefault(prompt, []).append(token),
    )  # fmt: skip
    for each in found:
        text = each.tokens[:-1] if each.finish_reason == "eos" else each.tokens
        assert announced.get(each.prompt_index, []) == text


@pytest.mark.parametrize("length", [60, 63, 64])
def test_generation_stops_at_the_last_position(model, length):
    (found,) = generate(model, [[7] * length], replace(GREEDY, max_dec_len=200))
    assert len(found.tokens) == 64 - length + 1
    assert found.finish_reason == "length"


def test_rows_without_a_token_are_never_picked(model):
    options = replace(SAMPLING, top_k=0, temperature=5.0, num_return_sequences=8)
    found = generate(model, [[1, 2]], options, num_tokens=20)
    assert max(token for each in found for token in each.tokens) < 20


def test_the_model_is_left_in_the_mode_it_had(model):
    model.train()
    try:
        generate(model, [[1]], GREEDY)
        assert model.training
    finally:
        model.eval()


@pytest.mark.parametrize(
    ("prompt", "error", "words"),
    [
        ([], UserError, "prompt 2 is empty"),
        ([1] * 65, UserError, "prompt 2 has 65 tokens; the model has 64 positions"),
        ([3, 128], DataError, "prompt 2 has token id 128; the model's ids are 0 to 127"),
        ([-1], DataError, "token id -1"),
    ],
)
def test_prompts_that_the_model_cannot_take(model, prompt, error, words):
    with pytest.raises(error, match=words):
        generate(model, [[1], prompt], GREEDY)
