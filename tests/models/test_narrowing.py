"""Few hidden units out of a trained feed-forward: which are kept, what they make, how they grow."""

import copy

import numpy as np
import paddle
import pytest
from paddle import nn

from models.ffn import LowRankLinear, approximate, merge
from models.ffn.grow import INTO, OUT_OF, HiddenUnits, choose_units, take_units
from models.ffn.narrow import NarrowLinear
from models.gpt import GPT
from tests.models.ffn_checks import small_gpt_config

WIDTH = 20
SPECS = {
    "narrow": {"kind": "narrow", "width": WIDTH},
    "thin": {"kind": "thin", "width": WIDTH, "rank": 16, "init": "normal"},
}


def uneven_gpt(rng):
    """A dense GPT whose hidden units differ in size, as trained ones do."""
    model = GPT(small_gpt_config({"kind": "dense"}))
    model.eval()
    for layer in model.layers:
        sizes = rng.lognormal(0, 1.0, 96)
        for linear, scale in ((layer.ffn.linear1, sizes), (layer.ffn.linear2, sizes[:, None])):
            values = rng.normal(0, 0.2, linear.weight.shape) * scale
            linear.weight.set_value(paddle.to_tensor(values.astype("float32")))
        layer.ffn.linear1.bias.set_value(paddle.to_tensor(rng.normal(0, 0.1, 96), "float32"))
    return model


def output(ffn, x):
    return ffn(x).numpy()


def test_scores_are_those_of_the_units_share_in_the_output(rng):
    linear1, linear2 = nn.Linear(3, 5), nn.Linear(5, 3)
    linear1.weight.set_value(paddle.to_tensor(np.diag([1.0, 2, 3, 4, 5])[:3], "float32"))
    linear1.bias.set_value(paddle.to_tensor([0.0, 0.0, 0.0, 0.5, 10.0]))
    linear2.weight.set_value(
        paddle.to_tensor(np.ones([5, 3]) * [[9], [1], [1], [1], [1]], "float32")
    )
    # Scores over √3: 9, 2, 3, 0.5, 10.
    assert choose_units(linear1, linear2, 3).tolist() == [0, 2, 4]
    assert choose_units(linear1, linear2, 5).tolist() == [0, 1, 2, 3, 4]


def test_scaling_a_unit_up_before_and_down_behind_changes_no_choice(rng):
    model = uneven_gpt(rng)
    pair = model.layers[0].ffn.linear1, model.layers[0].ffn.linear2
    before = choose_units(*pair, WIDTH)
    scale = paddle.to_tensor(rng.lognormal(0, 2, 96), "float32")
    pair[0].weight.set_value(pair[0].weight * scale)
    pair[0].bias.set_value(pair[0].bias * scale)
    pair[1].weight.set_value(pair[1].weight / scale.unsqueeze(1))
    assert choose_units(*pair, WIDTH).tolist() == before.tolist()


@pytest.mark.parametrize("kind", SPECS)
def test_kept_units_come_nearer_to_the_output_than_random_ones(rng, kind):
    model = uneven_gpt(rng)
    ffn = model.layers[0].ffn
    x = paddle.to_tensor(rng.normal(size=(64, 24)).astype("float32"))
    whole = output(ffn, x)
    errors = []
    for _ in range(20):
        kept = np.sort(rng.choice(96, WIDTH, replace=False))
        some = copy.deepcopy(ffn)
        some.linear1 = take_units(ffn.linear1, HiddenUnits(96, INTO, kept))
        some.linear2 = take_units(ffn.linear2, HiddenUnits(96, OUT_OF, kept))
        errors.append(np.linalg.norm(output(some, x) - whole))
    approximate(model, **SPECS[kind])
    error = np.linalg.norm(output(model.layers[0].ffn, x) - whole)
    assert error < 0.7 * min(errors)
    assert error < 0.6 * np.linalg.norm(whole)


def test_narrow_layers_compute_what_the_kept_units_do(rng):
    model = uneven_gpt(rng)
    dense = copy.deepcopy(model.layers[1].ffn)
    approximate(model, **SPECS["narrow"])
    kept = choose_units(dense.linear1, dense.linear2, WIDTH)
    dropped = np.setdiff1d(np.arange(96), kept)
    silent = dense.linear2.weight.numpy()
    silent[dropped] = 0
    dense.linear2.weight.set_value(paddle.to_tensor(silent))
    x = paddle.to_tensor(rng.normal(size=(8, 24)).astype("float32"))
    expected = output(dense, x)
    atol = 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(output(model.layers[1].ffn, x), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("kind", SPECS)
def test_errors_count_dropped_units_as_zeros(rng, kind):
    model = uneven_gpt(rng)
    before = copy.deepcopy(model)
    replacements = approximate(model, **SPECS[kind])
    assert [item.name for item in replacements] == ["layers.0.ffn", "layers.1.ffn"]
    for item, old, new in zip(replacements, before.layers, model.layers, strict=True):
        kept = choose_units(old.ffn.linear1, old.ffn.linear2, WIDTH)
        for number, attribute in enumerate(("linear1", "linear2")):
            weight = getattr(old.ffn, attribute).weight.numpy().astype(np.float64)
            stand_in = np.zeros_like(weight)
            values = getattr(new.ffn, attribute).dense_weight()
            if number == 0:
                stand_in[:, kept] = values
            else:
                stand_in[kept] = values
            expected = np.linalg.norm(weight - stand_in) / np.linalg.norm(weight)
            assert item.errors[number] == pytest.approx(expected, rel=1e-9)
            assert 0 < expected < 1


@pytest.mark.parametrize("kind", SPECS)
def test_they_load_into_a_model_built_of_the_kind_and_grow_back(rng, kind):
    model = uneven_gpt(rng)
    approximate(model, **SPECS[kind])
    assert model.config.ffn == SPECS[kind]
    built = GPT(small_gpt_config(SPECS[kind]))
    built.eval()
    built.set_state_dict(model.state_dict())
    shapes = {name: parameter.shape for name, parameter in built.named_parameters()}
    assert shapes == {name: parameter.shape for name, parameter in model.named_parameters()}
    ids = paddle.to_tensor(rng.integers(0, 61, (2, 16)))
    expected = model(ids).numpy()
    np.testing.assert_array_equal(built(ids).numpy(), expected)
    for one in (model, built):
        merge(one)
        assert one.config.ffn == {"kind": "dense"}
        assert one.layers[0].ffn.linear1.weight.shape == [24, 96]
        np.testing.assert_allclose(one(ids).numpy(), expected, atol=1e-4)


def test_full_width_is_the_same_function(rng):
    model = uneven_gpt(rng)
    ids = paddle.to_tensor(rng.integers(0, 61, (2, 16)))
    before = model(ids).numpy()
    replacements = approximate(model, kind="narrow", width=96)
    assert all(item.errors == (0.0, 0.0) for item in replacements)
    np.testing.assert_array_equal(model(ids).numpy(), before)


@pytest.mark.parametrize("width", [0, 97])
@pytest.mark.parametrize("kind", SPECS)
def test_a_width_that_does_not_fit_changes_nothing(rng, kind, width):
    model = uneven_gpt(rng)
    with pytest.raises(ValueError, match=f"width {width} is outside 1..96"):
        approximate(model, **{**SPECS[kind], "width": width})
    assert isinstance(model.layers[0].ffn.linear1, nn.Linear)
    assert model.config.ffn == {"kind": "dense"}


def test_other_makers_models_are_narrowed_too(rng):
    model = nn.Sequential(
        nn.Linear(6, 20, bias_attr=False), nn.ReLU(), nn.Linear(20, 6, bias_attr=False)
    )
    approximate(model, kind="narrow", width=5)
    assert isinstance(model[0], NarrowLinear)
    assert model[0].bias is None
    x = paddle.to_tensor(rng.normal(size=(4, 6)).astype("float32"))
    expected = model(x).numpy()
    merge(model)
    assert model[0].weight.shape == [6, 20]
    assert model[0].bias is None
    np.testing.assert_allclose(model(x).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize(
    "spec",
    [
        *SPECS.values(),
        {"kind": "low_rank", "rank": 4},
        {"kind": "monarch"},
        {"kind": "block_dense"},
        {"kind": "block_diagonal"},
    ],
    ids=lambda spec: spec["kind"],
)
def test_stand_ins_have_the_models_dtype(rng, spec, dtype):
    model = uneven_gpt(rng)
    model.to(dtype=dtype)
    approximate(model, **spec)
    found = {str(p.dtype) for p in model.parameters()}
    assert found == {f"paddle.{dtype}"}
    merge(model)
    assert {str(p.dtype) for p in model.parameters()} == found


def test_layers_that_are_named_stay_dense_and_ranks_go_by_layer(rng):
    model = uneven_gpt(rng)
    replacements = approximate(model, kind="low_rank", rank=4, dense_layers=[-1])
    assert [item.name for item in replacements] == ["layers.0.ffn"]
    assert isinstance(model.layers[1].ffn.linear1, nn.Linear)
    assert model.config.ffn == {"kind": "low_rank", "rank": 4, "dense_layers": [-1]}
    model = uneven_gpt(rng)
    approximate(model, kind="low_rank", layer_ranks=[2, 6])
    ranks = [layer.rank for layer in model.sublayers() if isinstance(layer, LowRankLinear)]
    assert ranks == [2, 2, 6, 6]
    with pytest.raises(ValueError, match="dense_layers names layer 2 of 2"):
        approximate(uneven_gpt(rng), kind="low_rank", rank=4, dense_layers=[2])


@pytest.mark.parametrize(
    "spec",
    [
        {"kind": "low_rank", "rank": 4, "decay_rule": "half"},
        {"kind": "thin", "width": WIDTH, "rank": 8, "decay_rule": "half"},
        {"kind": "monarch"},
        {"kind": "block_dense"},
        {"kind": "block_diagonal"},
    ],
    ids=lambda spec: spec["kind"],
)
def test_stand_ins_train_at_the_rates_of_a_model_built_of_the_kind(rng, spec):
    spec = {**spec, "lr_rule": "spectral", "lr_cap": 1000.0}
    model = uneven_gpt(rng)
    approximate(model, init_std=0.05, **spec)
    built = GPT(small_gpt_config(spec, initializer_range=0.05))

    def rates(one):
        return {
            name: (p.optimize_attr["learning_rate"], getattr(p, "weight_decay_scale", None))
            for name, p in one.named_parameters()
        }

    assert len({rate for rate, _ in rates(model).values()}) > 1
    assert rates(model) == rates(built)
