"""AdamW's state across the merge of every kind of feed-forward, against true dense moments."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import paddle
import pytest

from fastffn_cli.engine.checkpoint import model_tensors
from fastffn_cli.engine.handover import hand_over, merged_parameters
from fastffn_cli.engine.optimizer import AdamW
from models import ffn
from models.ffn.blocks import block_diagonal_matrix
from tests.engine.handover_runs import (
    BETA2,
    INNER,
    KINDS,
    NEW,
    OPTIONS,
    RATE,
    batch,
    dense_gradients,
    owner,
    train,
    train_with_dense_moments,
    weights,
)

STEPS = 30
WIDTHS = {kind: spec.get("width", INNER) for kind, spec in KINDS.items()}
GUIDED = {
    f"guided {kind}": {
        "kind": "guided",
        "inner": kind,
        **{option: value for option, value in spec.items() if option != "kind"},
    }
    for kind, spec in KINDS.items()
}
EVERY = {**KINDS, **GUIDED}


@pytest.fixture(scope="module")
def runs() -> dict[str, Any]:
    """Trained models with the moments that their merged matrices would have had."""
    return {kind: train_with_dense_moments(spec, STEPS) for kind, spec in KINDS.items()}


def existing(name: str, width: int) -> tuple[slice, slice]:
    """The part of a merged matrix that was trained before it grew."""
    whole, units = slice(None), slice(width)
    return (whole, units) if "linear1" in name else (units, whole)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))


def log_correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(np.log(a.ravel()), np.log(b.ravel()))[0, 1])


@pytest.mark.parametrize("policy", ["reset", "rewarm", "lift"])
@pytest.mark.parametrize("kind", EVERY)
def test_the_merged_models_optimizer_takes_the_state_and_trains_on(kind: str, policy: str) -> None:
    training = train(steps=4, layer_kind=EVERY[kind])
    state = training.optimizer.state()
    handed = hand_over(state, training.model, policy, options=OPTIONS)
    new = set(merged_parameters(training.model))
    after = training.merged(handed)
    entries = ("moment1", "moment2", "beta1_pow", "beta2_pow")
    assert handed.keys() == {
        f"{name}.{entry}" for name in after.optimizer.parameters for entry in entries
    }
    for name, array in handed.items():
        assert array.dtype == np.float32
        assert np.isfinite(array).all()
        if owner(name) not in new:
            assert array.tobytes() == state[name].tobytes()
        if name.endswith(("moment1", "moment2")):
            assert list(array.shape) == after.optimizer.parameters[owner(name)].shape
    before = training.step(batch(0), RATE).loss
    losses = [after.step(batch(number % 2), RATE).loss for number in range(4)]
    assert losses[0] == pytest.approx(before, abs=1e-5)
    assert losses[2] < losses[0]
    assert losses[3] < losses[1]


@pytest.mark.parametrize(
    ("kind", "first", "second"),
    [
        ("low_rank", 0.6, 0.85),
        ("thin", 0.6, 0.75),
        ("monarch", 0.7, 0.8),
        ("block_dense", 0.6, 0.75),
        ("block_diagonal", 0.45, 0.85),
    ],
)
def test_lifted_moments_resemble_the_dense_matrices_own(
    runs: dict[str, Any], kind: str, first: float, second: float
) -> None:
    """Cosine of the first moments, correlation of the second ones' logarithms.

    What a cheap layer never saw of the gradient is missing in the first: no cosine is 1.
    """
    training, moments = runs[kind]
    handed = hand_over(training.optimizer.state(), training.model, "lift", options=OPTIONS)
    for name, (true_first, true_second) in moments.items():
        part = existing(name, WIDTHS[kind])
        lifted = [handed[f"{name}.{entry}"][part] for entry in ("moment1", "moment2")]
        assert cosine(lifted[0], true_first[part]) > first, name
        assert log_correlation(lifted[1], true_second[part]) > second, name
        # Without probes the size of the second moment is an estimate, too.
        assert 0.5 < np.median(lifted[1] / true_second[part]) < 6, name


def test_units_of_a_narrow_layer_keep_their_moments_which_are_the_dense_ones(
    runs: dict[str, Any],
) -> None:
    training, moments = runs["narrow"]
    state = training.optimizer.state()
    handed = hand_over(state, training.model, "lift", options=OPTIONS)
    for name, true in moments.items():
        part = existing(name, WIDTHS["narrow"])
        for entry, dense in zip(("moment1", "moment2"), true, strict=True):
            kept = handed[f"{name}.{entry}"][part]
            assert kept.tobytes() == state[f"{name}.{entry}"].tobytes()
            tolerance = 1e-4 * np.abs(dense[part]).max()
            np.testing.assert_allclose(kept, dense[part], rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", ["narrow", "thin"])
def test_grown_units_begin_at_rest_with_a_typical_second_moment(
    runs: dict[str, Any], kind: str
) -> None:
    training, _ = runs[kind]
    handed = hand_over(training.optimizer.state(), training.model, "lift", options=OPTIONS)
    width = WIDTHS[kind]
    biases = [name.replace("weight", "bias") for name in NEW if "linear1" in name]
    assert set(merged_parameters(training.model)) == {*NEW, *biases}
    for name in (*NEW, *biases):
        axis = 1 if name.endswith("linear1.weight") else 0
        first, second = (handed[f"{name}.{entry}"] for entry in ("moment1", "moment2"))
        old, new = (slice(width), slice(width, None))
        first, second = np.moveaxis(first, axis, 0), np.moveaxis(second, axis, 0)
        assert first[old].any()
        assert not first[new].any()
        typical = np.median(second[old].astype(np.float64), axis=0)
        assert len(second[new]) == INNER - width
        np.testing.assert_allclose(second[new], np.broadcast_to(typical, second[new].shape), 1e-6)
    for name in biases:
        for entry in ("moment1", "moment2"):
            kept = training.optimizer.state()[f"{name}.{entry}"]
            assert handed[f"{name}.{entry}"][:width].tobytes() == kept.tobytes()


def test_blocks_keep_their_moments_and_what_lies_between_them_is_estimated(
    runs: dict[str, Any],
) -> None:
    training, moments = runs["block_diagonal"]
    state = training.optimizer.state()
    handed = hand_over(state, training.model, "lift", options=OPTIONS)
    for name, (_, true_second) in moments.items():
        inside = block_diagonal_matrix(np.ones(state[f"{name}.moment1"].shape, dtype=bool))
        for entry in ("moment1", "moment2"):
            dense = block_diagonal_matrix(state[f"{name}.{entry}"])
            assert (handed[f"{name}.{entry}"] == dense)[inside].all()
        assert not handed[f"{name}.moment1"][~inside].any()
        estimated = handed[f"{name}.moment2"][~inside].astype(np.float64)
        assert log_correlation(estimated, true_second[~inside]) > 0.8
        assert 0.7 < np.median(estimated / true_second[~inside]) < 1.4


@pytest.mark.parametrize("kind", ["narrow", "thin", "monarch", "block_diagonal"])
def test_probes_set_the_size_of_what_is_estimated_alone(runs: dict[str, Any], kind: str) -> None:
    training, _ = runs[kind]
    state = training.optimizer.state()
    names = merged_parameters(training.model)
    gradients = dense_gradients(training.model, 7)
    probes = {
        name: [100 * gradients.get(name, np.ones(INNER, np.float64))] for name in names
    }  # loud, so that the bound by the first moment's square is at rest
    plain = hand_over(state, training.model, "lift", options=OPTIONS)
    handed = hand_over(state, training.model, "lift", options=OPTIONS, probes=probes)
    weight = 1 - BETA2**STEPS
    for name in names:
        part = existing(name, WIDTHS[kind]) if name in NEW else slice(WIDTHS[kind])
        assert handed[f"{name}.moment1"].tobytes() == plain[f"{name}.moment1"].tobytes()
        old, new = (each[f"{name}.moment2"].astype(np.float64) for each in (plain, handed))
        estimated = np.zeros(old.shape, dtype=bool)
        if name in NEW and kind != "narrow":
            estimated[part] = True
        if kind == "block_diagonal":
            estimated &= ~block_diagonal_matrix(np.ones(state[f"{name}.moment1"].shape, bool))
        copied = ~estimated[part]
        assert (new[part] == old[part])[copied].all()
        if estimated.any():
            expected = np.mean(probes[name][0][estimated] ** 2)
            assert new[estimated].mean() / weight == pytest.approx(expected, rel=1e-3)


def test_layers_of_different_kinds_hand_over_side_by_side() -> None:
    spec = {**KINDS["thin"], "dense_layers": [0]}
    training = train(steps=3, layer_kind=spec)
    state = training.optimizer.state()
    handed = hand_over(state, training.model, "lift", options=OPTIONS)
    assert all(name.startswith("layers.1.ffn.") for name in merged_parameters(training.model))
    for name, array in state.items():
        if name.startswith("layers.0."):
            assert handed[name].tobytes() == array.tobytes()
    training.merged(handed).step(batch(0), RATE)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("kind", EVERY)
def test_masters_are_the_merged_ones_and_grown_units_have_the_merged_models(
    kind: str, dtype: str
) -> None:
    """The state alone: no CPU kernel updates half precision parameters."""
    training = train(steps=2, layer_kind=EVERY[kind])
    masters = model_tensors(training.model)
    exact = copy.deepcopy(training.model)
    exact.to(dtype="float64")
    ffn.merge(exact)
    state = training.optimizer.state()
    state.update({f"{name}.master": array for name, array in masters.items()})
    half = copy.deepcopy(training.model)
    half.to(dtype=dtype)
    merged = copy.deepcopy(half)
    ffn.merge(merged)

    handed = hand_over(state, half, "lift", options=OPTIONS, model_after=merged)
    optimizer = AdamW(merged, OPTIONS, multi_precision=True)
    optimizer.load_state(handed)
    block = paddle.static.default_main_program().global_block()
    optimizer.inner._create_accumulators(block, list(optimizer.parameters.values()))
    assert optimizer.state().keys() == handed.keys()
    width = WIDTHS[kind.removeprefix("guided ")]
    expected, drawn = weights(exact), weights(merged)
    for name in expected:
        master = handed[f"{name}.master"]
        assert master.dtype == np.float32
        if name not in NEW:
            assert (
                master[: min(width, len(master))] == expected[name][: len(master)][:width]
            ).all()
            continue
        part = existing(name, width)
        np.testing.assert_allclose(master[part], expected[name][part], rtol=1e-6, atol=1e-9)
        grown = np.ones(master.shape, dtype=bool)
        grown[part] = False
        assert (master == drawn[name])[grown].all()


def test_masters_cannot_grow_without_the_merged_model() -> None:
    training = train(steps=1, layer_kind=KINDS["narrow"])
    state = training.optimizer.state()
    state.update({f"{n}.master": array for n, array in model_tensors(training.model).items()})
    with pytest.raises(ValueError, match=r"linear1\.weight' grows: .* `model_after`"):
        hand_over(state, training.model, "lift", options=OPTIONS)


def test_full_width_leaves_nothing_to_hand_over() -> None:
    training = train(steps=1, layer_kind={"kind": "narrow", "width": INNER})
    state: Mapping[str, np.ndarray] = training.optimizer.state()
    assert merged_parameters(training.model) == []
    assert hand_over(state, training.model, "lift", options=OPTIONS) == state


def test_a_step_counter_of_its_own_for_each_merged_parameter() -> None:
    training = train(steps=3, layer_kind=KINDS["narrow"])
    state = training.optimizer.state()
    handed = hand_over(state, training.model, "lift", options=OPTIONS)
    reset = hand_over(state, training.model, "reset", options=OPTIONS)
    for name in merged_parameters(training.model):
        for power, beta in (("beta1_pow", 0.9), ("beta2_pow", 0.95)):
            np.testing.assert_array_equal(handed[f"{name}.{power}"], state[f"{name}.{power}"])
            np.testing.assert_array_equal(reset[f"{name}.{power}"], np.float32([beta]))
        assert not reset[f"{name}.moment1"].any()
        assert not reset[f"{name}.moment2"].any()
