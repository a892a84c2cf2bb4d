"""`fastffn convert`: the same function, proved on real tokens, or nothing written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from fastffn_cli.engine.checkpoint import read_checkpoint
from tests.conftest import Outcome, TrainedRun, Workplace
from tests.engine.runs import flip_byte

Program = Callable[..., Outcome]


@pytest.fixture
def run_copy(workplace: Workplace, trained_run: TrainedRun) -> Path:
    shutil.copytree(trained_run.dir, workplace.run_dir)
    return workplace.run_dir


def converted(fastffn: Program, *words: str) -> dict[str, Any]:
    done = fastffn("convert", *words, "--json")
    assert done.code == 0, done.err
    return json.loads(done.out)


def validation_loss(fastffn: Program, folder: Path) -> float:
    """Loss on the run's own validation tokens, from the engine's evaluation."""
    from fastffn_cli.data.dataset import TokenDataset
    from fastffn_cli.data.token_files import open_tokens
    from fastffn_cli.engine.checkpoint import load_model
    from fastffn_cli.engine.evaluate import evaluate
    from fastffn_cli.engine.precision import Precision
    from fastffn_cli.tasks.causal_lm import CausalLM

    loaded = load_model(folder)
    options = loaded.config.Data.dataset
    assert options.input_dir is not None
    dataset = TokenDataset(
        open_tokens(Path(options.input_dir)),
        **{"split": options.split, "part": "valid", "seq_len": 32, "seed": 0, "shuffle": False},
    )
    loss, _ = evaluate(CausalLM(loaded.model), dataset, Precision(), batches=50, batch_size=4)
    return loss


def test_convert_alone_merges_the_newest_stage_1_checkpoint(
    fastffn: Program, run_copy: Path
) -> None:
    done = fastffn("convert")

    assert done.code == 0, done.err
    assert done.out == ""
    assert "converting runs/tiny/checkpoints/step-00000008" in done.err
    assert "wrote runs/tiny/dense-step-00000008" in done.err
    assert "valid tokens of" in done.err
    assert "next: fastffn posttrain -c FILE --from runs/tiny/dense-step-00000008" in done.err
    dense = read_checkpoint(run_copy / "dense-step-00000008")
    assert dense.ffn_kind == "dense"
    assert dense.trainer["source"] == "runs/tiny/checkpoints/step-00000008"
    assert dense.optimizer_state() == {}
    assert dense.tokenizer() is not None


def test_merged_weights_are_the_products_of_the_factors(
    fastffn: Program, run_copy: Path, trained_run: TrainedRun
) -> None:
    assert fastffn("convert").code == 0
    factors = load_file(trained_run.checkpoint_dir / "model.safetensors")
    dense = load_file(run_copy / "dense-step-00000008" / "model.safetensors")
    assert {name for name in factors if "ffn" not in name} <= dense.keys()
    for place in ("layers.0.ffn.linear1", "layers.1.ffn.linear2"):
        left, right = (factors[f"{place}.{side}"].astype(np.float64) for side in ("left", "right"))
        np.testing.assert_allclose(dense[f"{place}.weight"], left @ right, atol=1e-7, rtol=1e-6)
        np.testing.assert_array_equal(dense[f"{place}.bias"], factors[f"{place}.bias"])
    np.testing.assert_array_equal(dense["norm.weight"], factors["norm.weight"])


def test_json_tells_the_proof_and_the_loss_is_that_of_stage_1(
    fastffn: Program, run_copy: Path
) -> None:
    report = converted(fastffn)
    assert report.keys() == {
        *("out", "format", "parameters_before", "parameters_after", "max_logit_difference"),
        *("max_logit", "loss_difference", "tokens", "layers"),
    }
    assert report["out"] == "runs/tiny/dense-step-00000008"
    assert 0 <= report["max_logit_difference"] <= 1e-5 * max(report["max_logit"], 1.0)
    assert abs(report["loss_difference"]) <= 1e-6
    assert report["parameters_after"] > report["parameters_before"]
    before = validation_loss(fastffn, run_copy / "checkpoints" / "step-00000008")
    assert validation_loss(fastffn, Path(report["out"])) == pytest.approx(before, abs=1e-6)


def test_in_float64_the_difference_is_rounding(fastffn: Program, run_copy: Path) -> None:
    report = converted(fastffn, "--dtype", "float64", "--tolerance", "1e-12")
    assert report["max_logit_difference"] < 1e-12 * max(report["max_logit"], 1.0)
    written = load_file(run_copy / "dense-step-00000008" / "model.safetensors")
    assert {array.dtype for array in written.values()} == {np.dtype("float32")}


def test_beyond_the_tolerance_it_is_exit_5_and_nothing_is_written(
    fastffn: Program, run_copy: Path
) -> None:
    failed = fastffn("convert", "--tolerance", "1e-12")
    assert failed.code == 5
    assert "over the tolerance 1e-12; nothing was written" in failed.err
    assert "--dtype float64" in failed.err
    assert not list(run_copy.glob("*dense*"))
    assert not list(run_copy.glob(".*"))


def test_an_existing_folder_is_refused_before_anything_is_loaded(
    fastffn: Program, run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastffn_cli.engine import checkpoint

    (run_copy / "mine").mkdir()
    monkeypatch.setattr(checkpoint, "load_model", lambda path: pytest.fail("it was loaded"))
    refused = fastffn("convert", "--out", run_copy / "mine")
    assert refused.code == 2
    assert "mine exists already; nothing was overwritten" in refused.err
    assert list((run_copy / "mine").iterdir()) == []


def test_dense_to_low_rank_reports_the_error_of_every_layer(
    fastffn: Program, run_copy: Path
) -> None:
    assert fastffn("convert").code == 0

    exact = converted(fastffn, "--to", "low_rank", "--rank", "4", "--out", "rank4")
    poor = converted(fastffn, "--to", "low_rank", "--rank", "1", "--out", "rank1")

    assert [layer["name"] for layer in exact["layers"]] == ["layers.0.ffn", "layers.1.ffn"]
    for layer in exact["layers"]:
        assert max(layer["relative_errors"]) < 1e-5  # the dense weights have rank 4: nothing lost
    for layer in poor["layers"]:
        assert min(layer["relative_errors"]) > 0.1
    again = read_checkpoint(Path("rank1"))
    assert again.ffn_kind == "low_rank"
    assert again.config.Model.ffn.model_dump()["rank"] == 1
    assert again.tensors()["layers.0.ffn.linear1.left"].shape == (32, 1)


def test_the_error_of_a_layer_is_the_tail_of_its_singular_values(
    fastffn: Program, run_copy: Path
) -> None:
    assert fastffn("convert").code == 0
    report = converted(fastffn, "--to", "low_rank", "--rank", "2", "--out", "rank2")
    dense = load_file(run_copy / "dense-step-00000008" / "model.safetensors")
    for layer in report["layers"]:
        for matrix, error in zip(("linear1", "linear2"), layer["relative_errors"], strict=True):
            values = np.linalg.svd(dense[f"{layer['name']}.{matrix}.weight"], compute_uv=False)
            expected = np.linalg.norm(values[2:]) / np.linalg.norm(values)
            assert error == pytest.approx(expected, rel=1e-4)


def test_what_is_dense_already_is_said_to_be(fastffn: Program, run_copy: Path) -> None:
    assert fastffn("convert").code == 0
    refused = fastffn("convert", run_copy / "dense-step-00000008", "--out", "again")
    assert refused.code == 2
    assert "is of kind 'dense' already" in refused.err
    assert not Path("again").exists()


def test_a_rank_beyond_the_matrix_is_refused(fastffn: Program, run_copy: Path) -> None:
    assert fastffn("convert").code == 0
    refused = fastffn("convert", "--to", "low_rank", "--rank", "64", "--out", "big")
    assert refused.code == 2
    assert "rank 64" in refused.err


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda file: flip_byte(file, 5000), "model.safetensors does not match its sha256"),
        (lambda file: os.truncate(file, 5000), "model.safetensors has 5000 bytes instead of"),
        (lambda file: file.unlink(), "model.safetensors is missing"),
    ],
    ids=["flipped", "truncated", "deleted"],
)
def test_a_damaged_checkpoint_is_named_and_not_used(
    fastffn: Program, run_copy: Path, harm: Callable[[Path], object], message: str
) -> None:
    folder = run_copy / "checkpoints" / "step-00000008"
    harm(folder / "model.safetensors")
    refused = fastffn("convert", folder)
    assert refused.code == 2
    assert f"step-00000008 is not a whole checkpoint: {message}" in refused.err


def test_the_probe_falls_back_to_random_tokens_when_the_data_is_gone(
    fastffn: Program, run_copy: Path, data_dir: Path
) -> None:
    hidden = data_dir.with_name("moved-away")
    data_dir.rename(hidden)
    try:
        done = fastffn("convert")
    finally:
        hidden.rename(data_dir)
    assert done.code == 0, done.err
    assert "random tokens (the run's data folder is gone)" in done.err


def test_nothing_to_convert_says_what_to_do(fastffn: Program, workplace: Workplace) -> None:
    refused = fastffn("convert")
    assert refused.code == 2
    assert "no stage-1 checkpoint to convert in the current folder" in refused.err
    assert "fastffn pretrain -c FILE" in refused.err


@pytest.mark.parametrize(
    ("kind", "options", "tensor"),
    [
        ("low_rank", ("--rank", "3"), "left"),
        ("narrow", ("--width", "10"), "weight"),
        ("narrow", (), "weight"),
        ("thin", ("--width", "10", "--rank", "3"), "left"),
        ("monarch", ("--blocks", "2"), "left"),
        ("block_dense", ("--blocks", "2", "--rank", "4"), "left"),
        ("block_diagonal", ("--blocks", "2"), "weight"),
    ],
)
def test_trained_layers_become_every_kind_that_can_fit_them_and_dense_again(
    fastffn: Program, run_copy: Path, kind: str, options: tuple[str, ...], tensor: str
) -> None:
    assert fastffn("convert", "--out", "dense").code == 0
    there = fastffn("convert", "dense", "--to", kind, *options, "--out", "cheap", "--json")
    assert there.code == 0, there.err
    report = json.loads(there.out)
    assert report["parameters_after"] < report["parameters_before"]
    assert all(0 < error < 1 for layer in report["layers"] for error in layer["relative_errors"])
    cheap = read_checkpoint(Path("cheap"))
    assert cheap.ffn_kind == kind
    assert f"layers.0.ffn.linear1.{tensor}" in cheap.weights()
    back = fastffn("convert", "cheap", "--out", "again", "--json")
    assert back.code == 0, back.err
    assert json.loads(back.out)["max_logit_difference"] < 1e-4


def test_an_option_of_another_kind_is_refused(fastffn: Program, run_copy: Path) -> None:
    assert fastffn("convert", "--out", "dense").code == 0
    refused = fastffn("convert", "dense", "--to", "monarch", "--rank", "3", "--out", "x")
    assert refused.code == 2
    assert "--rank is no option of the kind 'monarch'" in refused.err
    refused = fastffn("convert", "dense", "--to", "low_rank", "--width", "3", "--out", "x")
    assert refused.code == 2
    assert "--width is no option of the kind 'low_rank'" in refused.err
    refused = fastffn("convert", "dense", "--to", "narrow", "--width", "3000", "--out", "x")
    assert refused.code == 2
    assert "width 3000 is outside 1.." in refused.err
    assert not Path("x").exists()
