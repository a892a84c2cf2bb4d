"""The activation of the feed-forwards: both formulas, and every kind, merge and growth keep it."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from paddle.nn import functional

from models.ffn import approximate, build, merge
from models.ffn.base import Shape
from models.ffn.grow import grow
from models.ffn.registry import KINDS
from models.gpt import GPT
from models.kernels import library
from models.kernels.activation import ACTIVATIONS, fast_gelu
from tests.models.ffn_checks import small_gpt_config

SHAPE = Shape(24, 96, 0.3, "fast_gelu")
SPECS = {
    "dense": {}, "low_rank": {"rank": 4}, "narrow": {"width": 32}, "thin": {"rank": 4, "width": 32},
    "low_rank_activation": {"rank": 4}, "moe": {"experts": 2, "top_k": 2}, "guided": {"rank": 4},
    "monarch": {"blocks": 3}, "block_dense": {"blocks": 3, "rank": 6},
    "block_diagonal": {"blocks": 3},
}  # fmt: skip


def exact(x):
    """MindSpore's definition of fast_gelu, in float64."""
    x = x.astype(np.float64)
    return x * np.exp(0.851 * (x - np.abs(x))) / (1 + np.exp(-1.702 * np.abs(x)))


def tensor(rng, *shape):
    return paddle.to_tensor(rng.normal(size=shape, scale=3.0).astype("float32"))


def test_fast_gelu_is_the_formula_and_so_is_its_slope(rng):
    x = paddle.concat([tensor(rng, 4000), paddle.to_tensor([0.0, -40.0, 40.0, 1e4, -1e4])])
    x.stop_gradient = False
    y = fast_gelu(x)
    y.sum().backward()
    np.testing.assert_allclose(y.numpy(), exact(x.numpy()), rtol=3e-6, atol=3e-7)
    wide = x.numpy().astype(np.float64)
    gate = 1 / (1 + np.exp(-np.clip(1.702 * wide, -700, 700)))
    slope = gate * (1 + 1.702 * wide * (1 - gate))
    np.testing.assert_allclose(x.grad.numpy(), slope, rtol=3e-6, atol=3e-6)


def test_gelu_is_its_tanh_form(rng):
    x = tensor(rng, 100)
    expected = functional.gelu(x, approximate=True).numpy()
    np.testing.assert_array_equal(ACTIVATIONS["gelu"](x).numpy(), expected)


def test_every_kind_is_asked():
    assert SPECS.keys() == KINDS.keys()


@pytest.mark.parametrize("kind", SPECS)
def test_a_kind_computes_the_activation_that_it_is_built_with(kind, rng, monkeypatch):
    paddle.seed(int(rng.integers(1 << 30)))
    layer = build({"kind": kind, **SPECS[kind]}, SHAPE)
    layer.eval()
    x = tensor(rng, 2, 5, 24)
    own = layer(x).numpy()
    with library.suspended():  # the kernels have formulas of their own
        monkeypatch.setitem(ACTIVATIONS, "fast_gelu", lambda h: h * functional.sigmoid(1.702 * h))
        np.testing.assert_allclose(layer(x).numpy(), own, rtol=1e-5, atol=1e-5)
        monkeypatch.setitem(ACTIVATIONS, "fast_gelu", ACTIVATIONS["gelu"])
        assert np.abs(layer(x).numpy() - own).max() > 1e-3


@pytest.mark.parametrize("kind", [kind for kind in SPECS if KINDS[kind].why_not_mergeable is None])
def test_a_merged_layer_keeps_it(kind, rng):
    paddle.seed(int(rng.integers(1 << 30)))
    layer = build({"kind": kind, **SPECS[kind]}, SHAPE)
    layer.eval()
    x = tensor(rng, 2, 5, 24)
    merged = layer.merge()
    assert merged.activation == "fast_gelu"
    np.testing.assert_allclose(merged(x).numpy(), layer(x).numpy(), rtol=1e-4, atol=1e-4)


def test_growth_keeps_it(rng):
    layer = build({"kind": "dense"}, SHAPE)
    x = tensor(rng, 3, 24)
    grown = grow(layer.linear1, layer.linear2, 120, layer.activation)
    np.testing.assert_allclose(grown(x).numpy(), layer(x).numpy(), rtol=1e-5, atol=1e-5)


def test_a_model_keeps_it_through_factoring_and_merging(rng):
    model = GPT(small_gpt_config({"kind": "dense"}, hidden_act="fast_gelu"))
    model.eval()
    ids = paddle.to_tensor(rng.integers(0, 61, (2, 8)))
    before = model(ids).numpy()
    approximate(model, "low_rank", rank=24)  # exact: as many as the shorter side
    np.testing.assert_allclose(model(ids).numpy(), before, atol=1e-4)
    merge(model)
    np.testing.assert_allclose(model(ids).numpy(), before, atol=1e-4)
    assert [layer.ffn.activation for layer in model.layers] == ["fast_gelu"] * 2
    assert model.config.hidden_act == "fast_gelu"


def test_an_unknown_activation_is_refused():
    with pytest.raises(ValueError, match="unknown activation 'relu'; there are gelu, erf_gelu"):
        build({"kind": "dense"}, Shape(8, 16, 0.02, "relu"))
