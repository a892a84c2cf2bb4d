"""Self-guided training: the mix and its schedule, what is left of it afterwards, costs."""

import json
import math
import shutil

import numpy as np
import paddle
import pytest
from safetensors.numpy import load_file

from fastffn_cli.config.schema_training import OptimizerSection
from fastffn_cli.engine.handover import hand_over
from models.ffn import DenseFFN, GuidedFFN, Shape, build, cost, find_kind, merge
from models.ffn.guided import GuidedOptions, guidance
from models.gpt import GPT
from tests.models.ffn_checks import (
    VOCABULARY,
    assert_gradients,
    small_gpt_config,
    train_losses,
    unaccounted_per_token,
)

SHAPE = Shape(hidden_size=12, ffn_hidden_size=48, init_std=0.3)
INNER = {
    "low_rank": {"rank": 3},
    "narrow": {"width": 8},
    "thin": {"width": 8, "rank": 3},
    "monarch": {"blocks": 2},
    "block_dense": {"blocks": 2, "rank": 4},
    "block_diagonal": {"blocks": 4},
}


def guided(inner="low_rank", **options):
    return GuidedFFN(SHAPE, GuidedOptions(inner=inner, **{**INNER[inner], **options}))


def randomise(layer, rng):
    for parameter in layer.parameters():
        parameter.set_value(
            paddle.to_tensor(rng.normal(0, 0.3, parameter.shape)).astype(parameter.dtype)
        )


def test_the_schedule_is_a_cosine_over_the_guided_share():
    assert guidance(0.0, 0.5) == 1.0
    assert guidance(0.25, 0.5) == pytest.approx(0.5)
    assert guidance(0.125, 0.5) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    assert guidance(0.5, 0.5) == 0.0
    assert guidance(0.9, 0.5) == 0.0
    assert guidance(1.0, 1.0) == 0.0


@pytest.mark.parametrize("inner", INNER)
def test_both_branches_start_as_the_same_function(double_precision, rng, inner):
    layer = guided(inner)
    x = paddle.to_tensor(rng.normal(size=(5, 12)))
    np.testing.assert_allclose(layer.dense(x).numpy(), layer.inner(x).numpy(), atol=1e-13)
    assert [p.shape for p in layer.dense.parameters()] == [
        p.shape for p in DenseFFN(SHAPE).parameters()
    ]


@pytest.mark.parametrize("inner", INNER)
def test_branches_share_no_memory(inner):
    layer = guided(inner)
    before = [parameter.numpy().copy() for parameter in layer.inner.parameters()]
    for parameter in layer.dense.parameters():
        parameter.set_value(paddle.full_like(parameter, 7.0))
    for kept, parameter in zip(before, layer.inner.parameters(), strict=True):
        np.testing.assert_array_equal(parameter.numpy(), kept)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.4])
def test_a_guided_step_gives_the_mix(double_precision, rng, share):
    layer = guided()
    randomise(layer, rng)
    layer.set_progress(share, draw=0.0)
    x = paddle.to_tensor(rng.normal(size=(5, 12)))
    alpha = (1 + math.cos(math.pi * share / 0.5)) / 2
    expected = alpha * layer.dense(x).numpy() + (1 - alpha) * layer.inner(x).numpy()
    np.testing.assert_allclose(layer(x).numpy(), expected, rtol=1e-13, atol=1e-13)


def test_the_dense_branch_runs_as_often_as_its_weight_says(rng):
    layer = guided(reduce_flops=True)
    x = paddle.ones([1, 12])
    runs = []
    layer.dense.register_forward_pre_hook(lambda *_: runs.append(1))
    for draw in rng.random(2000):
        layer.set_progress(0.2, draw)
        with paddle.no_grad():
            layer(x)
    alpha = guidance(0.2, 0.5)
    assert len(runs) / 2000 == pytest.approx(alpha, abs=5 * math.sqrt(alpha * (1 - alpha) / 2000))


def test_a_step_above_the_weight_is_the_inner_one_alone(rng):
    layer = guided(reduce_flops=True)
    randomise(layer, rng)
    x = paddle.to_tensor(rng.normal(size=(5, 12)), dtype="float32")
    alpha = guidance(0.2, 0.5)
    layer.set_progress(0.2, alpha)
    np.testing.assert_array_equal(layer(x).numpy(), layer.inner(x).numpy())
    layer.set_progress(0.2, alpha - 1e-9)
    assert np.abs(layer(x).numpy() - layer.inner(x).numpy()).max() > 1e-3


def test_without_reduce_flops_the_draw_does_not_matter(rng):
    layer = guided(reduce_flops=False)
    randomise(layer, rng)
    x = paddle.to_tensor(rng.normal(size=(5, 12)), dtype="float32")
    outputs = []
    for draw in (0.0, 0.999999):
        layer.set_progress(0.2, draw)
        outputs.append(layer(x).numpy())
    np.testing.assert_array_equal(*outputs)
    assert np.abs(outputs[0] - layer.inner(x).numpy()).max() > 1e-3


@pytest.mark.parametrize("case", ["no progress told", "guided part over", "eval mode"])
def test_the_layer_is_its_inner_one_otherwise(rng, case):
    layer = guided()
    randomise(layer, rng)
    if case != "no progress told":
        layer.set_progress(0.5 if case == "guided part over" else 0.1, draw=0.0)
    if case == "eval mode":
        layer.eval()
    x = paddle.to_tensor(rng.normal(size=(5, 12)), dtype="float32")
    np.testing.assert_array_equal(layer(x).numpy(), layer.inner(x).numpy())


@pytest.mark.parametrize("inner", INNER)
def test_gradients_of_a_guided_step_agree_with_finite_differences(double_precision, rng, inner):
    layer = guided(inner)
    layer.set_progress(0.2, draw=0.0)
    x = paddle.to_tensor(rng.normal(size=(4, 12)), stop_gradient=False)
    weights = paddle.to_tensor(rng.normal(size=(4, 12)))
    assert_gradients(lambda: (layer(x) * weights).sum(), (x, *layer.parameters()), rng)


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-5)])
def test_a_gpt_merges_to_its_inner_function(rng, inner, dtype, tolerance):
    model = GPT(small_gpt_config({"kind": "guided", "inner": inner, **INNER[inner]}))
    model.to(dtype=dtype)
    randomise(model, rng)
    model.set_progress(0.2, [0.0, 0.0])
    model.eval()
    ids = paddle.to_tensor(rng.integers(0, VOCABULARY, (2, 16)))
    before = model(ids).numpy()
    assert merge(model) == ["layers.0.ffn", "layers.1.ffn"]
    assert np.abs(model(ids).numpy() - before).max() <= tolerance * max(1, np.abs(before).max())
    dense_names = [name for name, _ in GPT(small_gpt_config({"kind": "dense"})).named_parameters()]
    assert [name for name, _ in model.named_parameters()] == dense_names


@pytest.mark.parametrize("inner", INNER)
def test_cost_is_both_branches_parameters_and_the_inner_ones_flops(inner):
    spec = {"kind": "guided", "inner": inner, **INNER[inner]}
    counted, layer = cost(spec, SHAPE), build(spec, SHAPE)
    assert counted.parameters == sum(parameter.size for parameter in layer.parameters())
    alone, dense = cost({"kind": inner, **INNER[inner]}, SHAPE), cost({"kind": "dense"}, SHAPE)
    assert counted.flops_per_token == alone.flops_per_token
    assert counted.kept_per_token == alone.kept_per_token + dense.kept_per_token
    layer.set_progress(0.1, draw=0.0)
    x = paddle.randn([64, 12])
    x.stop_gradient = False
    assert unaccounted_per_token(layer, counted, x) == [0, 0]


def test_the_stated_average_share_of_dense_steps_is_the_integral_of_the_schedule():
    shares = (np.arange(100_000) + 0.5) / 100_000
    for guided_share in (0.2, 0.5, 1.0):
        mean = np.mean([guidance(share, guided_share) for share in shares])
        assert mean == pytest.approx(guided_share / 2, abs=1e-6)


def test_options_left_out_are_the_inner_kinds_own():
    assert guided(rank=None).inner.linear1.rank == find_kind({"kind": "low_rank"})[1].rank
    assert guided("narrow", width=None).inner.linear1.weight.shape == [12, 3]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"inner": "low_rank", "blocks": 2}, "options of feed-forward kind 'low_rank': rank"),
        ({"inner": "nonsense"}, "unknown feed-forward kind 'nonsense'"),
        ({"inner": "dense"}, "kind 'dense' cannot be guided"),
        ({"inner": "guided"}, "kind 'guided' cannot be guided"),
        ({"inner": "moe"}, "kind 'moe' cannot be guided: .*a router picks"),
        ({"inner": "low_rank", "rank": 13}, "rank 13 is outside 1..12"),
        ({"guided_share": 0.0}, "guided_share 0.0 is outside 0 to 1"),
        ({"guided_share": 1.5}, "guided_share 1.5 is outside 0 to 1"),
    ],
)
def test_what_cannot_be_guided_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        build({"kind": "guided", **options}, SHAPE)


def test_progress_and_auxiliary_loss_are_those_of_the_inner_one():
    layer, told = guided(), []
    layer.inner.set_progress = lambda *progress: told.append(progress)
    layer.inner.auxiliary_loss = lambda: paddle.full([], 3.0)
    layer.set_progress(0.3, 0.4)
    assert told == [(0.3, 0.4)]
    assert layer.auxiliary_loss().item() == 3.0


def test_recomputation_gives_the_same_gradients(rng):
    ids = paddle.to_tensor(rng.integers(0, VOCABULARY, (3, 16)))
    gradients = []
    for recompute in (False, True):
        paddle.seed(3)
        model = GPT(small_gpt_config({"kind": "guided", "rank": 3}, use_recompute=recompute))
        model.train()
        model.set_progress(0.1, [0.0, 0.99])
        model(ids).square().mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        if gradient is None:
            assert name.startswith("layers.1.ffn.dense")
            assert gradients[1][name] is None
        else:
            other = gradients[1][name].numpy()
            np.testing.assert_allclose(other, gradient.numpy(), rtol=0, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("reduce_flops", [True, False])
def test_a_gpt_trains(reduce_flops):
    losses = train_losses({"kind": "guided", "rank": 6, "reduce_flops": reduce_flops}, steps=30)
    assert losses[-1] < losses[0] - 0.1


@pytest.mark.parametrize("inner", INNER)
def test_built_without_values_it_has_the_same_parameters(inner):
    spec = {"kind": "guided", "inner": inner, **INNER[inner]}
    with paddle.LazyGuard():
        hollow = build(spec, SHAPE)
    shapes = [(name, parameter.shape) for name, parameter in hollow.named_parameters()]
    assert shapes == [(name, p.shape) for name, p in build(spec, SHAPE).named_parameters()]


def test_built_without_values_nothing_is_decomposed():
    with paddle.LazyGuard():
        hollow = guided()
    assert not any(parameter._is_initialized() for parameter in hollow.parameters())


GUIDED = (
    *("-c", "tiny.yaml", "-o", "Model.ffn={kind: guided, rank: 4, guided_share: 0.9}"),
    *("-o", "Engine.save_load.output_dir=runs/guided"),
)
STAGE_2 = (
    *("posttrain", "-c", "tiny.yaml", "-o", "Model.ffn={kind: dense}", "-o", "Engine.max_steps=2"),
    *("-o", "Engine.save_load.output_dir=runs/post"),
)


def test_stage_1_merges_and_stage_2_goes_on_from_it(fastffn, workplace):
    assert fastffn("pretrain", *GUIDED).code == 0
    stage_1 = load_file(workplace.dir / "runs/guided/checkpoints/step-00000008/model.safetensors")
    converted = fastffn("convert", "--json")
    assert converted.code == 0, converted.err
    assert json.loads(converted.out)["max_logit_difference"] < 1e-5
    dense = load_file(workplace.dir / "runs/guided/dense-step-00000008/model.safetensors")
    for place in ("layers.0.ffn.linear1", "layers.1.ffn.linear2"):
        factors = [
            stage_1[place.replace("ffn.", "ffn.inner.") + f".{side}"].astype(np.float64)
            for side in ("left", "right")
        ]
        np.testing.assert_allclose(dense[f"{place}.weight"], factors[0] @ factors[1], atol=1e-7)
    assert not any(".inner." in name or ".dense." in name for name in dense)
    done = fastffn(*STAGE_2, "--from", "runs/guided/dense-step-00000008")
    assert done.code == 0, done.err


def test_a_resumed_run_is_the_uninterrupted_one(fastffn, workplace):
    whole, parts = workplace.dir / "runs/guided", workplace.dir / "runs/parts"
    assert fastffn("pretrain", *GUIDED).code == 0
    shutil.copytree(whole, parts)
    shutil.rmtree(parts / "checkpoints" / "step-00000008")
    (parts / "checkpoints" / "latest").write_text("step-00000004\n")
    done = fastffn(
        "pretrain", *GUIDED, "-o", "Engine.save_load.output_dir=runs/parts",
        "--resume", "runs/parts/checkpoints/step-00000004",
    )  # fmt: skip
    assert done.code == 0, done.err
    ends = [
        load_file(run / "checkpoints/step-00000008/model.safetensors") for run in (whole, parts)
    ]
    for name, array in ends[0].items():
        np.testing.assert_array_equal(ends[1][name], array, err_msg=name)


@pytest.mark.parametrize("policy", ["reset", "lift"])
def test_the_optimizers_state_is_handed_over_as_for_the_inner_kind_alone(rng, policy):
    guide = GPT(small_gpt_config({"kind": "guided", "rank": 3}))
    alone = GPT(small_gpt_config({"kind": "low_rank", "rank": 3}))
    alone.set_state_dict({name.replace(".inner", ""): p for name, p in guide.named_parameters()})
    state = {}
    for name, parameter in guide.named_parameters():
        state[f"{name}.moment1"] = rng.normal(size=parameter.shape).astype(np.float32)
        state[f"{name}.moment2"] = rng.uniform(1, 2, parameter.shape).astype(np.float32)
        state[f"{name}.beta1_pow"] = np.full([1], 0.9**9, np.float32)
        state[f"{name}.beta2_pow"] = np.full([1], 0.999**9, np.float32)
    plain = {
        name.replace(".inner", ""): array
        for name, array in state.items()
        if ".ffn.dense." not in name
    }
    options = OptimizerSection()
    ours = hand_over(state, guide, policy, options=options)
    expected = hand_over(plain, alone, policy, options=options)
    merge(guide)
    wanted = {name for name, _ in guide.named_parameters()}
    assert {name.rpartition(".")[0] for name in ours} == wanted
    for name, array in expected.items():
        if (".ffn." in name and ".weight." in name) or ".ffn." not in name:
            np.testing.assert_array_equal(ours[name], array, err_msg=name)
