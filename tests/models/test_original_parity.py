"""The original FastFFN's arrays (MindSpore): stage 1, its conversion, and both models' logits."""

from dataclasses import replace

import numpy as np
import paddle
import pytest

from models.ffn import merge
from models.gpt import GPT
from tests.original_models import CONFIG, EOS, load_arrays, our_weights


@pytest.fixture(scope="module")
def arrays():
    return load_arrays("tiny.npz")


@pytest.fixture
def stage1(arrays):
    model = GPT(CONFIG)
    model.eval()
    for name, value in our_weights(arrays, "p.").items():
        dict(model.named_parameters())[name].set_value(paddle.to_tensor(value))
    return model


def masked_loss(logits, tokens, labels):
    """Mean cross entropy over inputs that are not end-of-text, as the original divides it."""
    logits = logits.astype(np.float64)
    log_sum = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
    picked = np.take_along_axis(logits, labels[..., None], -1)[..., 0]
    mask = tokens != EOS
    return ((log_sum - picked) * mask).sum() / (mask.sum() + 1e-5)


def logits_of(model, arrays):
    tokens = arrays["ids"][:, :-1]
    return model(paddle.to_tensor(tokens.astype(np.int64))).numpy()


def test_stage1_logits_equal_the_original(stage1, arrays):
    np.testing.assert_allclose(
        logits_of(stage1, arrays).reshape(64, 97), arrays["logits_float32"], atol=1e-5
    )


def test_the_masked_token_is_what_makes_them_equal(stage1, arrays):
    tokens = arrays["ids"][:, :-1]
    assert (tokens == EOS).any()
    stage1.config = replace(CONFIG, masked_token_id=None)
    different = np.abs(logits_of(stage1, arrays).reshape(64, 97) - arrays["logits_float32"]).max(1)
    behind = np.maximum.accumulate(tokens == EOS, axis=1).reshape(64)
    assert different[behind].min() > 1e-3
    assert different[~behind].max() < 1e-5


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
