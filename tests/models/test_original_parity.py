"""The original FastFFN's arrays (MindSpore): stage 1, its conversion, and both models' logits.

`tests/fixtures/fastffn/` holds parameters and outputs of the unmodified original with random
weights: vocabulary 97, hidden 16, 2 layers, 2 heads, 32 tokens, rank 8, end-of-text id 96.
"""

from pathlib import Path

import numpy as np
import paddle
import pytest

from models.ffn import merge
from models.gpt import GPT, MASKED, GPTConfig

FIXTURE = Path(__file__).parent.parent / "fixtures" / "fastffn" / "tiny.npz"
EOS = 96
CONFIG = GPTConfig(
    vocab_size=97,
    hidden_size=16,
    num_layers=2,
    num_attention_heads=2,
    ffn_hidden_size=64,
    max_position_embeddings=32,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    ffn={"kind": "low_rank", "rank": 8, "init": "normal"},
)


@pytest.fixture(scope="module")
def arrays():
    with np.load(FIXTURE, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


@pytest.fixture
def stage1(arrays):
    model = GPT(CONFIG)
    model.eval()
    for name, value in from_original(arrays).items():
        dict(model.named_parameters())[name].set_value(paddle.to_tensor(value))
    return model


def from_original(arrays):
    """Translate the original's names and its separate q, k, v into our interleaved projection."""
    p = {name[2:]: value for name, value in arrays.items() if name.startswith("p.")}
    ours = {
        "word_embeddings.weight": p["backbone.word_embedding.embedding_table"],
        "position_embeddings.weight": p["backbone.position_embedding.embedding_table"],
        "norm.weight": p["backbone.layernorm.gamma"],
        "norm.bias": p["backbone.layernorm.beta"],
    }
    for index in range(CONFIG.num_layers):
        theirs, mine = f"backbone.transformer.encoder.blocks.{index}.", f"layers.{index}."
        for number in (1, 2):
            ours[f"{mine}norm{number}.weight"] = p[f"{theirs}layernorm{number}.gamma"]
            ours[f"{mine}norm{number}.bias"] = p[f"{theirs}layernorm{number}.beta"]
        dense = [f"{theirs}attention.dense{number}" for number in (1, 2, 3)]
        weights = [p[f"{name}.weight"].T.reshape(16, 2, 1, 8) for name in dense]
        biases = [p[f"{name}.bias"].reshape(2, 1, 8) for name in dense]
        ours[f"{mine}self_attn.qkv_proj.weight"] = np.concatenate(weights, 2).reshape(16, 48)
        ours[f"{mine}self_attn.qkv_proj.bias"] = np.concatenate(biases, 1).reshape(48)
        ours[f"{mine}self_attn.out_proj.weight"] = p[f"{theirs}attention.projection.weight"]
        ours[f"{mine}self_attn.out_proj.bias"] = p[f"{theirs}attention.projection.bias"]
        for side, name in ((1, "mapping"), (2, "projection")):
            first, second = (f"{theirs}output.fastffn{name}{number}" for number in (1, 2))
            ours[f"{mine}ffn.linear{side}.left"] = p[f"{first}.weight"]
            ours[f"{mine}ffn.linear{side}.right"] = p[f"{second}.weight"]
            ours[f"{mine}ffn.linear{side}.bias"] = p[f"{second}.bias"]
    return ours


def original_mask(tokens):
    """The original also hides end-of-text keys and whole end-of-text rows, with one -1e4."""
    alive = (tokens != EOS).astype(np.float32)
    return paddle.to_tensor(MASKED * (1 - alive[:, None, :, None] * alive[:, None, None, :]))


def masked_loss(logits, tokens, labels):
    """Mean cross entropy over inputs that are not end-of-text, as the original divides it."""
    logits = logits.astype(np.float64)
    log_sum = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
    picked = np.take_along_axis(logits, labels[..., None], -1)[..., 0]
    mask = tokens != EOS
    return ((log_sum - picked) * mask).sum() / (mask.sum() + 1e-5)


def logits_of(model, arrays):
    tokens = arrays["ids"][:, :-1]
    return model(paddle.to_tensor(tokens.astype(np.int64)), mask=original_mask(tokens)).numpy()


def test_stage1_logits_equal_the_original(stage1, arrays):
    np.testing.assert_allclose(
        logits_of(stage1, arrays).reshape(64, 97), arrays["logits_float32"], atol=1e-5
    )


def test_stage1_loss_equals_the_original(stage1, arrays):
    ids = arrays["ids"]
    loss = masked_loss(logits_of(stage1, arrays), ids[:, :-1], ids[:, 1:])
    assert loss == pytest.approx(arrays["loss_float32"].item(), abs=1e-5)


def test_merged_weights_equal_the_original_conversion(stage1, arrays):
    merge(stage1)
    state = {name: value.numpy() for name, value in stage1.named_parameters()}
    for index in range(CONFIG.num_layers):
        theirs, mine = f"stage2.backbone.transformer.encoder.blocks.{index}.output.", index
        for side, name in ((1, "mapping"), (2, "projection")):
            for kind in ("weight", "bias"):
                np.testing.assert_allclose(
                    state[f"layers.{mine}.ffn.linear{side}.{kind}"],
                    arrays[f"{theirs}{name}.{kind}"],
                    atol=1e-6,
                )


def test_merged_model_keeps_the_original_stage1_logits(stage1, arrays):
    merge(stage1)
    np.testing.assert_allclose(
        logits_of(stage1, arrays).reshape(64, 97), arrays["logits_float32"], atol=1e-5
    )
