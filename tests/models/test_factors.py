"""Attention projections and tied embeddings in factors: same function merged, counts, start."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import paddle
import pytest

from fastffn_cli.config.load import load_config
from fastffn_cli.config.schema_training import OptimizerSection
from fastffn_cli.engine.handover import hand_over, merged_parameters
from fastffn_cli.engine.model import gpt_config
from fastffn_cli.engine.optimizer import AdamW
from fastffn_cli.generation.generate import generate
from fastffn_cli.generation.sampling import SamplingOptions
from models import ffn
from models.factored_embedding import FactoredEmbedding, TiedEmbedding
from models.factoring import factor
from models.ffn.low_rank import LowRankLinear, LowRankOptions
from models.gpt import GPT, count_parameters, flops_per_token
from tests.conftest import ROOT_DIR
from tests.models.ffn_checks import VOCABULARY, assert_gradients, next_token_loss, small_gpt_config

DENSE = {"kind": "dense"}
LOW_RANK = {"kind": "low_rank", "rank": 4}
METHOD = (ROOT_DIR / "docs/method.md").read_text(encoding="utf-8")
BOTH = {"attention_rank": 5, "embedding_rank": 7}
RANKS = [{"attention_rank": 5}, {"embedding_rank": 7}, BOTH]


def factored_gpt(ffn_spec=DENSE, **ranks):
    paddle.seed(3)
    model = GPT(small_gpt_config(ffn_spec, **ranks))
    for parameter in model.parameters():  # biases and norms, too
        parameter.set_value(parameter + 0.05 * paddle.randn(parameter.shape, parameter.dtype))
    model.eval()
    return model


def some_ids(rng, *shape):
    return paddle.to_tensor(rng.integers(0, VOCABULARY, shape))


def greatest_difference(one, other):
    return float(np.abs(one.numpy() - other.numpy()).max())


# --- the same function ---------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", RANKS)
def test_factors_compute_what_a_dense_gpt_with_their_products_does(double_precision, rng, ranks):
    model = factored_gpt(**ranks)
    dense = GPT(small_gpt_config(DENSE))
    values = {name: parameter.numpy() for name, parameter in model.named_parameters()}
    whole = {}
    for name in [name for name, _ in dense.named_parameters()]:
        place = name.removesuffix("weight")
        product = (f"{place}left", f"{place}right")
        whole[name] = values[name] if name in values else np.matmul(*(values[p] for p in product))
    dense.set_state_dict(whole)
    dense.eval()
    ids = some_ids(rng, 3, 12)
    assert greatest_difference(model(ids), dense(ids)) <= 1e-12


@pytest.mark.parametrize("spec", [DENSE, LOW_RANK, {"kind": "guided", "inner": "monarch"}])
@pytest.mark.parametrize("ranks", RANKS)
def test_merging_keeps_the_function_in_float64(double_precision, rng, spec, ranks):
    model = factored_gpt(spec, **ranks)
    ids = some_ids(rng, 3, 12)
    before = model(ids)
    ffn.merge(model)
    assert greatest_difference(before, model(ids)) <= 1e-12


def test_merging_keeps_the_function_in_float32(rng):
    model = factored_gpt(LOW_RANK, **BOTH)
    ids = some_ids(rng, 3, 12)
    before = model(ids)
    ffn.merge(model)
    assert greatest_difference(before, model(ids)) <= 1e-5 * max(1.0, float(before.abs().max()))


def test_the_merged_model_is_an_ordinary_one_and_knows_it():
    model = factored_gpt(LOW_RANK, **BOTH)
    ordinary = GPT(small_gpt_config(DENSE))
    merged = ffn.merge(model)
    assert "word_embeddings" in merged
    assert "layers.1.self_attn.out_proj" in merged
    assert model.config == ordinary.config
    assert {name: p.shape for name, p in model.named_parameters()} == {
        name: p.shape for name, p in ordinary.named_parameters()
    }


def test_a_model_that_cannot_be_merged_keeps_its_factors():
    model = factored_gpt({"kind": "moe", "experts": 2}, **BOTH)
    with pytest.raises(ffn.NotMergeable):
        ffn.merge(model)
    assert isinstance(model.word_embeddings, FactoredEmbedding)
    assert model.config.attention_rank == 5


def test_approximating_the_feed_forwards_leaves_the_other_factors():
    model = factored_gpt(**BOTH)
    ffn.approximate(model, rank=3)
    assert isinstance(model.layers[0].self_attn.qkv_proj, LowRankLinear)
    assert model.config.ffn["kind"] == "low_rank"
    assert (model.config.attention_rank, model.config.embedding_rank) == (5, 7)


def test_a_merged_table_keeps_dtype_and_mode(double_precision):
    table = FactoredEmbedding(11, 6, LowRankOptions(rank=2))
    table.eval()
    merged = table.merge()
    assert (merged.weight.dtype, merged.training) == (paddle.float64, False)
    np.testing.assert_allclose(
        merged.weight.numpy(), table.left.numpy() @ table.right.numpy(), rtol=0, atol=1e-15
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_tables_merge_to_their_rounded_product(dtype):
    table = FactoredEmbedding(11, 6, LowRankOptions(rank=2))
    table.to(dtype=dtype)
    exact = np.matmul(*(getattr(table, f).astype("float32").numpy() for f in ("left", "right")))
    merged = table.merge()
    assert str(merged.weight.dtype).endswith(dtype)
    np.testing.assert_allclose(merged.weight.astype("float32").numpy(), exact, rtol=5e-3, atol=1e-6)


# --- training ------------------------------------------------------------------------------------


def test_gradients_agree_with_finite_differences(double_precision, rng):
    model = factored_gpt(**BOTH)
    ids = some_ids(rng, 2, 9)
    tensors = [
        *(model.word_embeddings.left, model.word_embeddings.right),
        *(model.layers[0].self_attn.qkv_proj.left, model.layers[0].self_attn.qkv_proj.right),
        *(model.layers[1].self_attn.out_proj.left, model.layers[1].self_attn.out_proj.bias),
    ]
    assert_gradients(lambda: next_token_loss(model, ids), tensors, rng)


@pytest.mark.parametrize("ranks", RANKS)
def test_the_loss_falls(ranks):
    paddle.seed(5)
    model = GPT(small_gpt_config(LOW_RANK, **ranks))
    optimizer = paddle.optimizer.AdamW(5e-3, parameters=model.parameters())
    ids = some_ids(np.random.default_rng(5), 4, 16)
    losses = []
    for _ in range(20):
        loss = next_token_loss(model, ids)
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(np.log(VOCABULARY), abs=0.2)
    assert losses[-1] < losses[0] - 0.5


def test_the_optimizer_state_is_handed_over_and_trains_on():
    paddle.seed(5)
    model = GPT(small_gpt_config(LOW_RANK, **BOTH))
    options = OptimizerSection()
    optimizer = AdamW(model, options, multi_precision=False)
    ids = some_ids(np.random.default_rng(5), 4, 16)
    for _ in range(3):
        next_token_loss(model, ids).backward()
        optimizer.step(1e-3)
        optimizer.inner.clear_grad()
    merged = copy.deepcopy(model)
    ffn.merge(merged)
    assert {"word_embeddings.weight", "layers.0.self_attn.qkv_proj.weight"} <= set(
        merged_parameters(model)
    )
    state = hand_over(optimizer.state(), model, "lift", options=options)
    np.testing.assert_array_equal(
        state["layers.0.self_attn.qkv_proj.bias.moment1"],
        optimizer.state()["layers.0.self_attn.qkv_proj.bias.moment1"],
    )
    assert np.abs(state["word_embeddings.weight.moment1"]).max() > 0
    following = AdamW(merged, options, multi_precision=False)
    following.load_state(state)
    before = next_token_loss(merged, ids)
    before.backward()
    following.step(1e-3)
    assert next_token_loss(merged, ids).item() < before.item()


def test_factors_follow_the_options_of_the_feed_forwards():
    spec = {**LOW_RANK, "lr_rule": "spectral", "lr_cap": 3.0, "decay_rule": "half"}
    model = GPT(small_gpt_config(spec, **BOTH))
    options = LowRankOptions(rank=5, lr_rule="spectral", lr_cap=3.0, decay_rule="half")
    assert model.config.factor_options(5) == options
    alone = LowRankLinear(24, 72, options)
    for side in ("left", "right"):
        ours, theirs = getattr(model.layers[0].self_attn.qkv_proj, side), getattr(alone, side)
        assert ours.optimize_attr["learning_rate"] == theirs.optimize_attr["learning_rate"] > 1
        assert ours.weight_decay_scale == theirs.weight_decay_scale < 0.5
    assert small_gpt_config(DENSE).factor_options(5) == LowRankOptions(rank=5)


# --- start ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [8, 32])
def test_the_product_of_the_embeddings_starts_with_the_spread_of_a_whole_table(rank):
    table = FactoredEmbedding(4000, 64, LowRankOptions(rank=rank), init_std=0.02)
    assert table.dense_weight().std() == pytest.approx(0.02, rel=0.1)
    assert table.left.numpy().std() == pytest.approx(table.right.numpy().std(), rel=0.1)


@pytest.mark.parametrize("rank", [64, 128, 256])
def test_a_sign_step_of_both_factors_moves_the_table_about_as_a_dense_step_would(rank):
    table = FactoredEmbedding(3000, 256, LowRankOptions(rank=rank), init_std=0.02)
    assert 0.75 < table.merged_rates()["weight"] < 1.2


def test_a_rank_above_the_table_is_refused():
    with pytest.raises(ValueError, match=r"rank 8 is outside 1\.\.6 for a 6 x 24 matrix"):
        FactoredEmbedding(6, 24, LowRankOptions(rank=8))


# --- counts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [DENSE, LOW_RANK])
@pytest.mark.parametrize("ranks", [{}, *RANKS])
def test_closed_form_counts_equal_the_built_model(spec, ranks):
    config = small_gpt_config(spec, **ranks)
    model = GPT(config)
    assert count_parameters(config) == sum(int(p.size) for p in model.parameters())
    matrices = [
        2 * int(parameter.size)
        for name, parameter in model.named_parameters()
        if len(parameter.shape) == 2 and name != "position_embeddings.weight"
    ]
    lookup = 2 * ranks.get("embedding_rank", 0) * config.hidden_size
    scores = 4 * 10 * config.hidden_size * config.num_layers
    assert flops_per_token(config, 10) == sum(matrices) + lookup + scores


def test_published_share_of_attention_factors_of_a_quarter_of_the_width():
    dense = small_gpt_config(DENSE, hidden_size=768, num_attention_heads=12, num_layers=1)
    quarter = replace(dense, attention_rank=192)
    saved = flops_per_token(dense, 8) - flops_per_token(quarter, 8)
    assert saved == (8 - 3) * 768**2  # 8·D² FLOPs become 12·R·D = 3·D²


@pytest.mark.parametrize(
    ("shape", "ceilings"),
    [
        ("gpt-6l", (1.45, 1.69, 4.16)),
        ("gpt-124m", (1.65, 2.07, 3.86)),
        ("gpt-345m", (1.98, 2.85, 4.17)),
    ],
)
def test_the_ceilings_of_the_documentation(shape, ceilings):
    dense = gpt_config(load_config(f"{shape}-dense").config)
    parts = {"ffn": {"kind": "low_rank", "rank": 8}}
    for more, ceiling in zip(
        ({}, {"attention_rank": dense.hidden_size // 4}, {"embedding_rank": 128}),
        ceilings,
        strict=True,
    ):
        parts |= more
        ratio = flops_per_token(dense, 1024) / flops_per_token(replace(dense, **parts), 1024)
        assert ratio == pytest.approx(ceiling, abs=0.006)
        assert f" {ceiling:.2f} |" in METHOD


# --- generation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", RANKS)
def test_the_cache_changes_nothing_and_merged_models_generate_the_same(rng, ranks):
    model = factored_gpt(LOW_RANK, **ranks)
    ids = some_ids(rng, 2, 12)
    cache = model.new_cache(batch_size=2, capacity=12)
    pieces = [model(ids[:, :7], cache=cache), model(ids[:, 7:], cache=cache)]
    assert greatest_difference(paddle.concat(pieces, axis=1), model(ids)) <= 1e-5
    prompts = [ids[0, :5].tolist(), ids[1, :3].tolist()]
    greedy = SamplingOptions(decode_strategy="greedy_search", max_dec_len=8)
    cached = generate(model, prompts, greedy)
    assert generate(model, prompts, greedy, use_cache=False) == cached
    ffn.merge(model)
    assert generate(model, prompts, greedy) == cached


# --- from trained weights ------------------------------------------------------------------------


def test_factoring_at_full_rank_keeps_the_function(double_precision, rng):
    model = factored_gpt()
    ids = some_ids(rng, 2, 10)
    before = model(ids)
    errors = factor(model, attention_rank=24, embedding_rank=24)
    assert max(errors.values()) <= 1e-12
    assert greatest_difference(before, model(ids)) <= 1e-10
    assert isinstance(model.word_embeddings, FactoredEmbedding)
    assert not model.word_embeddings.training


def test_factoring_leaves_the_tail_of_the_singular_values():
    model = factored_gpt()
    table = model.word_embeddings.weight.numpy()
    errors = factor(model, embedding_rank=6)
    assert list(errors) == ["word_embeddings"]
    values = np.linalg.svd(table, compute_uv=False)
    expected = np.linalg.norm(values[6:]) / np.linalg.norm(values)
    assert errors["word_embeddings"] == pytest.approx(expected, rel=1e-4)
    assert model.config.embedding_rank == 6
    assert model.config.attention_rank is None


def test_a_factored_model_trains_as_one_that_was_built_so():
    """A run that is resumed builds its model: rates must not depend on where factors come from."""
    spec = {**LOW_RANK, "lr_rule": "spectral"}
    built = GPT(small_gpt_config(spec, **BOTH))
    model = GPT(small_gpt_config(spec))
    biases = model.layers[0].self_attn.qkv_proj.bias.numpy()
    errors = factor(model, **BOTH)
    assert len(errors) == 5
    assert model.config == built.config
    np.testing.assert_array_equal(model.layers[0].self_attn.qkv_proj.bias.numpy(), biases)
    theirs = dict(built.named_parameters())
    for name, parameter in model.named_parameters():
        assert parameter.shape == theirs[name].shape
        assert parameter.optimize_attr == theirs[name].optimize_attr, name


def test_what_is_in_factors_already_is_refused_before_anything_changes():
    model = factored_gpt(embedding_rank=7)
    with pytest.raises(ValueError, match="word_embeddings is in factors already"):
        factor(model, attention_rank=5, embedding_rank=6)
    assert model.config.attention_rank is None
    assert not isinstance(model.layers[0].self_attn.qkv_proj, LowRankLinear)


def test_factored_and_merged_again_is_a_dense_model(rng):
    model = factored_gpt()
    factor(model, **BOTH)
    ids = some_ids(rng, 2, 10)
    before = model(ids)
    ffn.merge(model)
    assert isinstance(model.word_embeddings, TiedEmbedding)
    assert greatest_difference(before, model(ids)) <= 1e-5
