"""Mixture of experts: routing, capacity, balance loss, and independence of the batch in eval."""

import json
import math

import numpy as np
import paddle
import pytest

from models.ffn import DenseFFN, MoEFFN, NotMergeable, Shape, build, cost, merge
from models.ffn.moe import MoEOptions
from models.gpt import GPT
from tests.models.ffn_checks import (
    VOCABULARY,
    assert_gradients,
    next_token_loss,
    small_gpt_config,
    train_losses,
    unaccounted_per_token,
)

SHAPE = Shape(hidden_size=12, ffn_hidden_size=20, init_std=0.3)


def random_moe(rng, **options):
    """A layer whose router prefers some experts clearly."""
    layer = MoEFFN(SHAPE, MoEOptions(**options))
    for parameter in layer.parameters():
        parameter.set_value(paddle.to_tensor(rng.normal(size=parameter.shape)))
    return layer


def probabilities(x, layer):
    logits = x @ layer.router.weight.numpy()
    odds = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return odds / odds.sum(axis=-1, keepdims=True)


def reference(x, layer, capacity):
    """Token by token in float64 numpy; `capacity` is how many tokens an expert takes."""
    top_k = layer.options.top_k
    places = dict.fromkeys(range(layer.options.experts), capacity)
    outputs = []
    for token, odds in zip(x, probabilities(x, layer), strict=True):
        picked = np.argsort(-odds, kind="stable")[:top_k]
        total = odds[picked].sum() if top_k > 1 else 1.0
        output = np.zeros_like(token)
        for expert in picked:
            places[expert] -= 1
            if places[expert] >= 0:
                run = layer.experts[int(expert)](paddle.to_tensor(token[None])).numpy()[0]
                output += odds[expert] / total * run
        outputs.append(output)
    return np.stack(outputs)


@pytest.mark.parametrize("top_k", [1, 2, 5])
def test_eval_sends_every_token_through_its_experts(double_precision, rng, top_k):
    layer = random_moe(rng, experts=5, top_k=top_k, capacity_factor=0.1)
    layer.eval()
    x = rng.normal(size=(3, 7, 12))
    ours = layer(paddle.to_tensor(x)).numpy()
    expected = reference(x.reshape(-1, 12), layer, capacity=21)
    np.testing.assert_allclose(ours.reshape(-1, 12), expected, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize(("top_k", "factor"), [(1, 0.5), (1, 1.25), (2, 0.7), (3, 0.4)])
def test_training_passes_by_tokens_over_capacity(double_precision, rng, top_k, factor):
    layer = random_moe(rng, experts=4, top_k=top_k, capacity_factor=factor)
    x = rng.normal(size=(3, 9, 12))
    ours = layer(paddle.to_tensor(x)).numpy()
    capacity = math.ceil(factor * 27 * top_k / 4)
    expected = reference(x.reshape(-1, 12), layer, capacity)
    np.testing.assert_allclose(ours.reshape(-1, 12), expected, rtol=1e-12, atol=1e-11)


def test_a_token_that_is_passed_by_adds_nothing(rng):
    layer = MoEFFN(SHAPE, MoEOptions(experts=2, capacity_factor=0.5))
    # Positive input and a router that knows one answer: ceil(0.5 · 8 / 2) = 2 of 8 are served.
    layer.router.weight.set_value(paddle.to_tensor(np.tile([1.0, -1.0], (12, 1)), dtype="float32"))
    x = paddle.to_tensor(rng.uniform(0.5, 1.0, (8, 12)), dtype="float32")
    served = np.abs(layer(x).numpy()).sum(axis=1) > 0
    assert served.tolist() == [True, True, *[False] * 6]
    layer.eval()
    assert (np.abs(layer(x).numpy()).sum(axis=1) > 0).all()


@pytest.mark.parametrize("top_k", [1, 2])
def test_gradients_agree_with_finite_differences(double_precision, rng, top_k):
    layer = MoEFFN(SHAPE, MoEOptions(experts=3, top_k=top_k, balance_weight=0.5))
    layer.router.weight.set_value(paddle.to_tensor(rng.normal(size=[12, 3])))
    x = paddle.to_tensor(rng.normal(size=(10, 12)), stop_gradient=False)
    weights = paddle.to_tensor(rng.normal(size=(10, 12)))

    def loss():
        output = layer(x)
        return (output * weights).sum() + layer.auxiliary_loss()

    assert_gradients(loss, (x, *layer.parameters()), rng)


@pytest.mark.parametrize("top_k", [1, 2])
def test_balance_loss_is_the_published_sum(double_precision, rng, top_k):
    layer = random_moe(rng, experts=4, top_k=top_k, balance_weight=0.01, capacity_factor=0.1)
    x = rng.normal(size=(2, 11, 12))
    layer(paddle.to_tensor(x))
    odds = probabilities(x.reshape(-1, 12), layer)
    picked = np.argsort(-odds, axis=1)[:, :top_k]
    fractions = np.bincount(picked.ravel(), minlength=4) / picked.size
    expected = 0.01 * 4 * (fractions * odds.mean(axis=0)).sum()
    assert layer.auxiliary_loss().shape == []
    assert layer.auxiliary_loss().item() == pytest.approx(expected, rel=1e-12)


def test_balance_loss_is_its_weight_for_an_undecided_router():
    layer = MoEFFN(SHAPE, MoEOptions(experts=4, balance_weight=0.25))
    layer.router.weight.set_value(paddle.zeros([12, 4]))
    layer(paddle.randn([6, 12]))
    assert layer.auxiliary_loss().item() == pytest.approx(0.25, rel=1e-6)


def test_there_is_no_balance_loss_in_eval_mode_or_without_weight():
    layer = MoEFFN(SHAPE, MoEOptions(experts=4))
    layer(paddle.randn([6, 12]))
    assert layer.auxiliary_loss() is not None
    layer.eval()
    layer(paddle.randn([6, 12]))
    assert layer.auxiliary_loss() is None
    unweighted = MoEFFN(SHAPE, MoEOptions(experts=4, balance_weight=0.0))
    unweighted(paddle.randn([6, 12]))
    assert unweighted.auxiliary_loss() is None


def test_the_balance_loss_spreads_tokens(rng):
    paddle.seed(1)
    layer = MoEFFN(SHAPE, MoEOptions(experts=4, balance_weight=1.0))
    layer.router.weight.set_value(
        # The first expert's logits are 12 higher on average: nearly every token prefers it.
        paddle.to_tensor(rng.normal(size=[12, 4]) + 2 * np.eye(1, 4), dtype="float32")
    )
    x = paddle.to_tensor(rng.normal(0.5, 1.0, (256, 12)), dtype="float32")
    optimizer = paddle.optimizer.Adam(3e-2, parameters=[layer.router.weight])
    losses = []
    for _ in range(100):
        layer(x)
        loss = layer.auxiliary_loss()
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        losses.append(loss.item())
    assert losses[0] > 1.3
    assert losses[-1] < 1.05


@pytest.mark.parametrize("top_k", [1, 2])
def test_eval_of_a_token_does_not_depend_on_the_batch(double_precision, rng, top_k):
    layer = random_moe(rng, experts=4, top_k=top_k, capacity_factor=0.25)
    layer.eval()
    x = paddle.to_tensor(rng.normal(size=(16, 12)))
    alone = np.concatenate([layer(x[i : i + 1]).numpy() for i in range(16)])
    np.testing.assert_allclose(layer(x).numpy(), alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("top_k", [1, 2])
def test_cached_decoding_equals_the_full_forward(double_precision, rng, top_k):
    spec = {"kind": "moe", "experts": 4, "top_k": top_k, "expert_size": 16, "capacity_factor": 0.3}
    model = GPT(small_gpt_config(spec))
    model.eval()
    ids = paddle.to_tensor(rng.integers(0, VOCABULARY, (2, 10)))
    cache = model.new_cache(2, 10)
    steps = [model(ids[:, :4], cache=cache)]
    steps += [model(ids[:, at : at + 1], cache=cache) for at in range(4, 10)]
    stepwise = paddle.concat(steps, axis=1).numpy()
    np.testing.assert_allclose(stepwise, model(ids).numpy(), rtol=0, atol=1e-12)


def test_in_training_no_token_sees_a_later_one(double_precision, rng):
    layer = random_moe(rng, experts=4, top_k=2, capacity_factor=0.5)
    x = rng.normal(size=(1, 20, 12))
    changed = x.copy()
    changed[:, 8:] = rng.normal(size=(1, 12, 12))
    # 5 places an expert for 16 choices of the first 8 tokens: some are passed by.
    before, after = (layer(paddle.to_tensor(each)).numpy() for each in (x, changed))
    np.testing.assert_allclose(after[:, :8], before[:, :8], rtol=0, atol=1e-13)


def test_an_expert_that_nobody_chose_has_a_gradient_of_zero(rng):
    layer = MoEFFN(SHAPE, MoEOptions(experts=3))
    layer.router.weight.set_value(
        paddle.to_tensor(np.tile([1.0, 0.0, -1.0], (12, 1)), dtype="float32")
    )
    x = paddle.to_tensor(rng.uniform(0.5, 1.0, (8, 12)), dtype="float32")
    layer(x).sum().backward()
    gradients = [
        [np.abs(parameter.grad.numpy()).max() for parameter in expert.parameters()]
        for expert in layer.experts
    ]
    assert min(gradients[0]) > 0
    assert gradients[1:] == [[0.0] * 4] * 2


@pytest.mark.parametrize("granularity", ["full", "full_attn", "core_attn"])
def test_recomputation_gives_the_same_gradients_balance_loss_included(rng, granularity):
    spec = {"kind": "moe", "experts": 4, "expert_size": 16, "balance_weight": 1.0}
    ids = paddle.to_tensor(rng.integers(0, VOCABULARY, (3, 16)))
    gradients = []
    for recompute in (False, True):
        paddle.seed(3)
        model = GPT(
            small_gpt_config(
                spec,
                use_recompute=recompute,
                recompute_granularity=granularity,
                hidden_dropout_prob=0.2,
            )
        )
        model.train()
        (next_token_loss(model, ids) + model.auxiliary_loss()).backward()
        gradients.append({name: p.grad.numpy() for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        np.testing.assert_allclose(gradients[1][name], gradient, rtol=0, atol=1e-7, err_msg=name)
    # The router learns from the balance loss: a graph without it would give another gradient.
    assert np.abs(gradients[0]["layers.0.ffn.router.weight"]).max() > 1e-3


def test_the_same_input_gives_the_same_bits(rng):
    layer = MoEFFN(SHAPE, MoEOptions(experts=4, top_k=2))
    x = paddle.to_tensor(rng.normal(size=(2, 16, 12)), dtype="float32")
    assert (layer(x).numpy() == layer(x).numpy()).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_router_works_in_float32_whatever_the_model(rng, dtype):
    layer = MoEFFN(SHAPE, MoEOptions(experts=4))
    layer.to(dtype=dtype)
    x = paddle.to_tensor(rng.normal(size=(5, 12))).astype(dtype)
    odds = layer._probabilities(x)
    assert odds.dtype == paddle.float32
    logits = x.astype("float32").numpy() @ layer.router.weight.astype("float32").numpy()
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(odds.numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"top_k": 2, "expert_size": 7, "experts": 5}])
def test_cost_in_closed_form_equals_the_built_layer(options):
    spec = {"kind": "moe", **options}
    layer, counted = build(spec, SHAPE), cost(spec, SHAPE)
    assert counted.parameters == sum(parameter.size for parameter in layer.parameters())
    one = layer.experts[0]
    used = [layer.router.weight, *layer.options.top_k * [one.linear1.weight, one.linear2.weight]]
    assert counted.flops_per_token == sum(2 * matrix.size for matrix in used)
    x = paddle.randn([256, 12])
    x.stop_gradient = False
    layer.eval()  # no token is passed by
    gates = 2 * layer.options.top_k  # picked and normalised; too few to count
    assert all(0 <= more <= gates + 1 for more in unaccounted_per_token(layer, counted, x))


def test_experts_start_as_dense_layers_do_and_the_router_at_a_tenth():
    paddle.seed(2)
    layer = MoEFFN(Shape(256, 512, 0.02), MoEOptions(experts=16, expert_size=64))
    assert all(isinstance(expert, DenseFFN) for expert in layer.experts)
    assert layer.experts[3].linear1.weight.numpy().std() == pytest.approx(0.02, rel=0.05)
    assert layer.router.weight.numpy().std() == pytest.approx(0.002, rel=0.05)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"top_k": 9}, "top_k 9 is outside 1..8"),
        ({"top_k": 0}, "top_k 0 is outside 1..8"),
        ({"capacity_factor": 0.0}, "capacity_factor 0.0 is not above 0"),
        ({"expert_size": 0}, "expert_size 0 is below 1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        build({"kind": "moe", **options}, SHAPE)
    with pytest.raises(ValueError, match=said):
        cost({"kind": "moe", **options}, SHAPE)


def test_merging_says_why_it_cannot_and_changes_nothing():
    model = GPT(small_gpt_config({"kind": "moe", "experts": 2, "expert_size": 8}))
    with pytest.raises(NotMergeable, match="a router picks other weights for each token"):
        merge(model)
    assert isinstance(model.layers[0].ffn, MoEFFN)


@pytest.mark.parametrize("top_k", [1, 2])
def test_a_gpt_trains(top_k):
    losses = train_losses({"kind": "moe", "experts": 4, "top_k": top_k, "expert_size": 32})
    assert losses[-1] < losses[0] - 0.1


def test_built_without_values_it_has_the_same_parameters():
    spec = {"kind": "moe", "experts": 3}
    with paddle.LazyGuard():
        hollow = build(spec, SHAPE)
    shapes = [(name, parameter.shape) for name, parameter in hollow.named_parameters()]
    assert shapes == [(name, p.shape) for name, p in build(spec, SHAPE).named_parameters()]


def test_evaluation_gives_one_number_and_a_merge_is_refused(fastffn, workplace):
    spec = "Model.ffn={kind: moe, experts: 4, top_k: 2, expert_size: 16, capacity_factor: 0.5}"
    trained = fastffn("pretrain", "-c", "tiny.yaml", "-o", spec)
    assert trained.code == 0, trained.err
    assert "kind moe has no dense form" in trained.err
    checkpoint = workplace.run_dir / "checkpoints/step-00000008"
    losses = []
    for size in (1, 5):
        done = fastffn("eval", checkpoint, "--batch-size", size, "--json")
        assert done.code == 0, done.err
        losses.append(json.loads(done.out)["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    refused = fastffn("convert", checkpoint)
    assert refused.code == 2
    assert "no dense form of the same function: a router picks other weights" in refused.err
    assert not (workplace.run_dir / "dense-step-00000008").exists()
