"""`approximate` and `merge` on any Paddle model: the two calls of the API."""

import numpy as np
import paddle
import pytest
from paddle import nn

from models.ffn import LowRankLinear, NotMergeable, approximate, merge
from models.gpt import GPT, GPTConfig


def small_gpt(**ffn):
    config = GPTConfig(
        vocab_size=61,
        hidden_size=24,
        num_layers=2,
        num_attention_heads=3,
        ffn_hidden_size=96,
        max_position_embeddings=16,
        ffn=ffn or {"kind": "dense"},
    )
    model = GPT(config)
    model.eval()
    return model


def encoder():
    layer = nn.TransformerEncoderLayer(24, 3, 96, dropout=0.1, activation="gelu")
    model = nn.TransformerEncoder(layer, 2)
    model.eval()
    return model


def sequential():
    return nn.Sequential(nn.Linear(24, 96), nn.ReLU(), nn.Dropout(0.1), nn.Linear(96, 24))


def feed(model, rng):
    """Run a model on fresh random input of its kind."""
    if isinstance(model, GPT):
        ids = paddle.to_tensor(rng.integers(0, 61, (2, 16)))
        return lambda: model(ids).numpy()
    x = paddle.to_tensor(rng.normal(size=(2, 9, 24)).astype(paddle.get_default_dtype()))
    return lambda: model(x).numpy()


def randomise(model, rng):
    for parameter in model.parameters():
        parameter.set_value(
            paddle.to_tensor(rng.normal(0, 0.3, parameter.shape)).astype(parameter.dtype)
        )


MODELS = {"gpt": small_gpt, "encoder": encoder, "sequential": sequential}


@pytest.mark.parametrize("name", MODELS)
def test_merge_keeps_the_function_in_float64(double_precision, rng, name):
    model = MODELS[name]()
    model.eval()
    randomise(model, rng)
    output = feed(model, rng)
    approximate(model, kind="low_rank", rank=5)
    before = output()
    merge(model)
    assert np.abs(output() - before).max() <= 1e-12 * max(1.0, np.abs(before).max())


@pytest.mark.parametrize("name", MODELS)
def test_merge_keeps_the_function_in_float32(rng, name):
    model = MODELS[name]()
    model.eval()
    output = feed(model, rng)
    approximate(model, kind="low_rank", rank=5)
    before = output()
    merge(model)
    assert np.abs(output() - before).max() <= 1e-5


@pytest.mark.parametrize("name", MODELS)
def test_full_rank_approximation_changes_nothing(rng, name):
    model = MODELS[name]()
    model.eval()
    output = feed(model, rng)
    before = output()
    replaced = approximate(model, rank=24)
    np.testing.assert_allclose(output(), before, atol=1e-5)
    assert all(error < 1e-6 for item in replaced for error in item.errors)


def test_a_model_built_with_factors_merges_to_the_same_function(rng):
    model = small_gpt(kind="low_rank", rank=4)
    output = feed(model, rng)
    before = output()
    assert merge(model) == ["layers.0.ffn", "layers.1.ffn"]
    assert np.abs(output() - before).max() <= 1e-5
    assert model.config.ffn == {"kind": "dense"}
    dense_names = [name for name, _ in small_gpt().named_parameters()]
    assert [name for name, _ in model.named_parameters()] == dense_names


def test_merging_twice_finds_nothing_the_second_time():
    model = small_gpt(kind="low_rank", rank=4)
    merge(model)
    assert merge(model) == []


def test_errors_are_those_of_the_truncated_singular_values(rng):
    model = sequential()
    weights = [model[0].weight.numpy(), model[3].weight.numpy()]
    (item,) = approximate(model, rank=6)
    for weight, error in zip(weights, item.errors, strict=True):
        values = np.linalg.svd(weight.astype(np.float64), compute_uv=False)
        expected = np.sqrt((values[6:] ** 2).sum() / (values**2).sum())
        assert error == pytest.approx(expected, rel=1e-5)


def test_every_feed_forward_of_the_encoder_is_replaced_and_nothing_else():
    model = encoder()
    assert [item.name for item in approximate(model, rank=2)] == ["layers.0", "layers.1"]
    for layer in model.layers:
        assert isinstance(layer.linear1, LowRankLinear)
        assert isinstance(layer.linear2, LowRankLinear)
        assert isinstance(layer.self_attn.q_proj, nn.Linear)


def test_an_approximated_encoder_trains():
    model = encoder()
    approximate(model, rank=2)
    model.train()
    x = paddle.randn([4, 5, 24])
    optimizer = paddle.optimizer.AdamW(1e-2, parameters=model.parameters())
    losses = []
    for _ in range(8):
        loss = (model(x) ** 2).mean()
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_linears_without_bias_keep_none():
    model = nn.Sequential(
        nn.Linear(8, 16, bias_attr=False), nn.GELU(), nn.Linear(16, 8, bias_attr=False)
    )
    approximate(model, rank=2)
    assert model[0].bias is None
    merge(model)
    assert model[0].bias is None


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 8)),  # no activation between
        nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4)),  # not back to its width
        nn.Linear(8, 8),
    ],
)
def test_a_model_without_feed_forwards_is_refused(model):
    with pytest.raises(ValueError, match="no \\(Linear, activation, Linear\\) feed-forward"):
        approximate(model, rank=2)


@pytest.mark.parametrize(
    "spec",
    [
        {"kind": "low_rank", "rank": 4},
        {"kind": "guided", "rank": 4},
        {"kind": "moe", "experts": 2, "expert_size": 8},
        {"kind": "moe", "experts": 2, "expert_size": 8, "dense_layers": [0]},
    ],
)
def test_a_model_with_cheap_feed_forwards_is_refused_and_left_alone(spec):
    model = small_gpt(**spec)
    names = [name for name, _ in model.named_parameters()]
    with pytest.raises(ValueError, match=f"is of kind '{spec['kind']}' already"):
        approximate(model, rank=2)
    assert [name for name, _ in model.named_parameters()] == names
    assert model.config.ffn == spec


def test_a_layer_without_dense_form_leaves_the_model_unchanged():
    class Unmergeable(nn.Layer):
        def merge(self):
            raise NotMergeable("a gate stands between")

    model = nn.Sequential(LowRankHolder(), Unmergeable())
    with pytest.raises(NotMergeable, match="a gate stands between"):
        merge(model)
    assert isinstance(model[0].linear, LowRankLinear)


class LowRankHolder(nn.Layer):
    def __init__(self):
        super().__init__()
        from models.ffn.low_rank import LowRankOptions

        self.linear = LowRankLinear(8, 16, LowRankOptions(rank=2))
