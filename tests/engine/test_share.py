"""What a card holds, counted against the tensors of a model that is really built."""

from math import prod

import pytest
from paddle import LazyGuard

from fastffn_cli.engine.memory import count_fixed, estimate_memory
from fastffn_cli.engine.share import WHOLE, Share, count_share
from models.gpt import GPT, GPTConfig, count_parameters

SIZES = {
    **{"vocab_size": 96, "hidden_size": 32, "num_layers": 4, "num_attention_heads": 4},
    **{"ffn_hidden_size": 128, "max_position_embeddings": 16},
}
SPLIT = [
    {"ffn": {"kind": "dense"}},
    {"ffn": {"kind": "low_rank", "rank": 8}},
    {"ffn": {"kind": "low_rank", "rank": 8, "dense_layers": [0, -1]}},
    {"ffn": {"kind": "low_rank_activation", "rank": 8}},
    {"ffn": {"kind": "narrow", "width": 16}},
    {"ffn": {"kind": "narrow"}},
    {"ffn": {"kind": "thin", "rank": 4, "width": 16}},
    {"ffn": {"kind": "low_rank", "rank": 8}, "attention_rank": 8, "embedding_rank": 8},
]
WHOLE_ONLY = [
    {"ffn": {"kind": "monarch", "blocks": 4}},
    {"ffn": {"kind": "moe", "experts": 2}},
    {"ffn": {"kind": "guided"}},
]


def gpt(**changes):
    return GPTConfig(**{**SIZES, **changes})


def parameters(config):
    with LazyGuard():
        model = GPT(config)
    return {name: list(value.shape) for name, value in model.named_parameters()}


def part(name, shape, tensor):
    """Values of one tensor on a card: qkv and linear1 lose outputs, out and linear2 inputs."""
    if "qkv_proj" in name or "linear1" in name:
        whole = name.endswith("left")
    elif "out_proj" in name or "linear2" in name:
        whole = name.endswith(("right", "bias"))
    else:
        whole = True
    return prod(shape) if whole else prod(shape) // tensor


@pytest.mark.parametrize("changes", SPLIT + WHOLE_ONLY, ids=str)
def test_the_whole_share_is_the_model(changes):
    config = gpt(**changes)
    assert count_share(config, WHOLE) == count_parameters(config)


@pytest.mark.parametrize("tensor", [2, 4])
@pytest.mark.parametrize("changes", SPLIT, ids=str)
def test_a_tensor_parallel_card_holds_its_part_of_each_tensor(changes, tensor):
    config = gpt(**changes)
    counted = sum(part(*entry, tensor) for entry in parameters(config).items())
    assert count_share(config, Share(tensor=tensor)) == counted


@pytest.mark.parametrize("changes", SPLIT + WHOLE_ONLY, ids=str)
def test_pipeline_stages_hold_the_model_and_the_table_twice(changes):
    config = gpt(**changes)
    stages = [Share(first_layer=first, end_layer=first + 2) for first in (0, 2)]
    shapes = parameters(config)
    table = sum(prod(shape) for name, shape in shapes.items() if "word_embeddings" in name)
    total = sum(count_share(config, share) for share in stages)
    assert total == count_parameters(config) + table
    first = sum(
        prod(shape)
        for name, shape in shapes.items()
        if "embeddings" in name or name.startswith(("layers.0.", "layers.1."))
    )
    assert count_share(config, stages[0]) == first


def test_a_kind_that_is_not_split_has_no_share_among_tensor_parallel_cards():
    with pytest.raises(ValueError, match="on 2 cards"):
        count_share(gpt(ffn={"kind": "monarch", "blocks": 4}), Share(tensor=2))


@pytest.mark.parametrize(("half", "bytes_each"), [(False, (4, 4, 8)), (True, (2, 2, 14))])
def test_sharding_divides_what_it_says(half, bytes_each):
    config, weights = gpt(), count_parameters(gpt())
    layer = 12 * 32 * 32 + 13 * 32
    shares = (Share(), Share(state_cards=4), Share(state_cards=4, gradient_cards=4))
    shares += (Share(state_cards=4, gradient_cards=4, weight_cards=4),)
    quarter, expected = -(-weights // 4), []
    for stage in range(4):
        # Shared weights and gradients are whole for one layer at a time.
        w = quarter + layer if stage == 3 else weights
        g = quarter + layer if stage >= 2 else weights
        o = quarter if stage >= 1 else weights
        expected.append([n * size for n, size in zip((w, g, o), bytes_each, strict=True)])
    counted = [count_fixed(config, half=half, share=share) for share in shares]
    assert [[each.weights, each.gradients, each.optimizer] for each in counted] == expected


def test_activations_of_one_layer_by_hand():
    still = gpt(
        num_layers=1, vocab_size=4, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    d, f, square = 32, 128, 4 * 16

    def kept(tensor, *, sequence):
        residual = d // tensor if sequence else d
        # norms: inputs (2) and what their products take (2); q, k, v, heads; softmax; GELU.
        return 2 * residual + 2 * d + (4 * d + square + 2 * f) / tensor

    def working(tensor):
        return max(5.2 * d, f / tensor + 3.2 * d, (2.3 * square - 2 * f) / tensor)

    for tensor, sequence in ((1, False), (2, False), (2, True)):
        share = Share(tensor=tensor, sequence=sequence)
        head = 4 // tensor * 8 + 2 * d * 4
        tokens = 16 * (4 * kept(tensor, sequence=sequence) + max(head, 4 * working(tensor)))
        assert estimate_memory(still, 16, share=share).activations(1) == round(tokens)


def test_waiting_micro_batches_keep_their_activations_and_not_the_working_set():
    one, three = (estimate_memory(gpt(), 16, share=Share(0, 2, in_flight=n)) for n in (1, 3))
    two_layers = estimate_memory(gpt(), 16, share=Share(0, 2, in_flight=2))
    assert three.activations(1) - two_layers.activations(1) == pytest.approx(
        two_layers.activations(1) - one.activations(1), abs=1
    )
    assert three.activations(1) < 3 * one.activations(1)
    assert three.fixed == one.fixed


@pytest.mark.parametrize(
    "thin", [{"ffn": {"kind": "low_rank", "rank": 8}}, {"attention_rank": 8}], ids=str
)
def test_thin_factors_take_their_part_of_the_sequence(thin):
    def saved(changes):
        plain, shared = (
            estimate_memory(gpt(**changes), 16, share=Share(0, 2, tensor=2, sequence=sequence))
            for sequence in (False, True)
        )
        return plain.activations(1) - shared.activations(1)

    # One more norm output of two layers is divided: half of 32 floats a token.
    more = saved(thin) - saved({})
    assert more == pytest.approx(2 * 16 * 16 * 4, abs=1)
