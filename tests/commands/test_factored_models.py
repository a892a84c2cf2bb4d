"""Attention projections and embeddings in factors, from `pretrain` to `posttrain`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from fastffn_cli.engine.checkpoint import read_checkpoint
from tests.conftest import Outcome, Workplace, make_workplace

Program = Callable[..., Outcome]

# Feed-forwards stay dense: the factors alone make it a stage-1 model.
FACTORS = (
    *("-o", "Model.ffn={kind: dense}", "-o", "Model.attention_rank=6"),
    *("-o", "Model.embedding_rank=10"),
)
SHORT = ("-o", "Engine.max_steps=4")


@pytest.fixture(scope="module")
def factored_run(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> tuple[Path, str]:
    """Four steps of the tiny configuration in factors, and what its process said."""
    place = make_workplace(tmp_path_factory.mktemp("factored"), data_dir)
    words = ("pretrain", "-c", place.config_file, *FACTORS, *SHORT)
    done = place.run_fastffn(*words, env={"COLUMNS": "200"})
    assert done.returncode == 0, done.stderr
    return place.run_dir, done.stderr


@pytest.fixture
def run_copy(workplace: Workplace, factored_run: tuple[Path, str]) -> Path:
    shutil.copytree(factored_run[0], workplace.run_dir)
    return workplace.run_dir


def test_pretrain_tells_the_factors_their_saving_and_what_is_next(
    factored_run: tuple[Path, str],
) -> None:
    said = factored_run[1]
    assert "FFN dense, attention rank 6, embedding rank 10" in said
    assert "x faster than dense by FLOPs" in said
    assert "next        fastffn convert" in said
    weights = read_checkpoint(factored_run[0] / "checkpoints" / "step-00000004").weights()
    assert weights["word_embeddings.right"].shape == (10, 32)
    assert weights["layers.1.self_attn.qkv_proj.left"].shape == (32, 6)
    assert weights["layers.1.ffn.linear1.weight"].shape == (32, 128)


def test_convert_finds_it_merges_it_and_posttrain_goes_on(
    fastffn: Program, run_copy: Path, workplace: Workplace
) -> None:
    done = fastffn("convert", "--json")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["max_logit_difference"] <= 1e-5 * max(report["max_logit"], 1.0)
    assert report["parameters_after"] > report["parameters_before"]
    merged = run_copy / "dense-step-00000004"
    section = read_checkpoint(merged).config.Model
    assert (section.attention_rank, section.embedding_rank) == (None, None)
    factors = load_file(run_copy / "checkpoints/step-00000004/model.safetensors")
    whole = load_file(merged / "model.safetensors")
    for place in ("word_embeddings", "layers.0.self_attn.qkv_proj"):
        left, right = (factors[f"{place}.{side}"].astype(np.float64) for side in ("left", "right"))
        np.testing.assert_allclose(whole[f"{place}.weight"], left @ right, atol=1e-7, rtol=1e-6)

    following = fastffn(
        *("posttrain", "-c", "tiny.yaml", "-o", "Model.ffn={kind: dense}"),
        *("-o", "Engine.save_load.output_dir=runs/post", "-o", "Engine.max_steps=2"),
    )
    assert following.code == 0, following.err
    assert "starts from the weights of runs/tiny/dense-step-00000004 (step 4)" in following.err
    assert "next        fastffn eval" in following.err


def test_in_float64_the_merge_is_rounding(fastffn: Program, run_copy: Path) -> None:
    done = fastffn("convert", "--dtype", "float64", "--tolerance", "1e-12", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["max_logit_difference"] < 1e-12


def test_it_evaluates_and_generates_before_and_after_the_merge(
    fastffn: Program, run_copy: Path
) -> None:
    assert fastffn("convert", "--out", "dense").code == 0
    texts, losses = [], []
    for folder in (run_copy / "checkpoints/step-00000004", Path("dense")):
        written = fastffn("generate", "the", "--model", folder, "--greedy", "--max-tokens", "8")
        assert written.code == 0, written.err
        texts.append(written.out)
        measured = fastffn("eval", folder, "--json")
        assert measured.code == 0, measured.err
        losses.append(json.loads(measured.out)["loss"])
    assert texts[0] == texts[1]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_it_is_resumed_with_its_own_ranks_only(
    fastffn: Program, run_copy: Path, workplace: Workplace
) -> None:
    more = ("pretrain", "-c", "tiny.yaml", "--resume", "-o", "Engine.max_steps=5")
    refused = fastffn(*more, *FACTORS, "-o", "Model.attention_rank=5")
    assert refused.code == 2
    assert "Model.attention_rank was 6, is 5" in refused.err
    done = fastffn(*more, *FACTORS)
    assert done.code == 0, done.err
    assert (run_copy / "checkpoints/step-00000005").exists()


def test_stage_2_does_not_begin_with_factors(fastffn: Program, run_copy: Path) -> None:
    start = ("posttrain", "-c", "tiny.yaml", "-o", "Model.ffn={kind: dense}")
    other = ("-o", "Engine.save_load.output_dir=runs/post")
    refused = fastffn(*start, *other, "--from", run_copy / "checkpoints/step-00000004")
    assert refused.code == 2
    assert "Model.attention_rank is 6 there, blank here" in refused.err
    assert "Model.embedding_rank is 10 there, blank here" in refused.err
    assert "Merge it first: fastffn convert" in refused.err


def test_inspect_tells_the_ranks_of_run_and_checkpoint(fastffn: Program, run_copy: Path) -> None:
    for folder in (run_copy, run_copy / "checkpoints/step-00000004"):
        shown = fastffn("inspect", folder)
        assert "FFN dense, attention rank 6, embedding rank 10" in shown.out
        values = json.loads(fastffn("inspect", folder, "--json").out)
        assert (values["attention_rank"], values["embedding_rank"]) == (6, 10)


@pytest.mark.parametrize("system", ["hf", "fleetx", "mindspore"])
def test_other_systems_get_the_merged_model(fastffn: Program, run_copy: Path, system: str) -> None:
    folder = run_copy / "checkpoints/step-00000004"
    done = fastffn("convert", folder, "--format", system, "--out", "there")
    assert done.code == 0, done.err
    assert "-> dense" in done.err


def test_what_other_systems_have_stays_whole_whatever_is_asked_for(
    fastffn: Program, run_copy: Path
) -> None:
    folder = run_copy / "checkpoints/step-00000004"
    assert fastffn("convert", folder, "--format", "hf", "--out", "there").code == 0
    done = fastffn("convert", "there", "-o", "Model.attention_rank=4", "--out", "back")
    assert done.code == 0, done.err
    assert "Model.attention_rank is 4 (-o Model.attention_rank=4), the matrices of" in done.err
    assert read_checkpoint(Path("back")).config.Model.is_dense


def test_other_systems_are_not_given_factors(fastffn: Program, run_copy: Path) -> None:
    folder = run_copy / "checkpoints/step-00000004"
    assert fastffn("convert", folder, "--to", "low_rank", "--rank", "3", "--out", "cheap").code == 0
    cheap = read_checkpoint(Path("cheap"))
    assert cheap.config.Model.attention_rank == 6  # the feed-forwards alone were asked for
    words = ("--to", "low_rank", "--format", "mindspore", "--out", "there")
    refused = fastffn("convert", "cheap", *words)
    assert refused.code == 2
    assert "has whole matrices only, and Model.attention_rank is 6 here" in refused.err
    assert "add --to dense" in refused.err
    assert not Path("there").exists()


def test_bench_has_something_to_compare(fastffn: Program) -> None:
    done = fastffn("bench", "-c", "tiny.yaml", *FACTORS, "--steps", "1", "--rounds", "1", "--json")
    assert done.code == 0, done.err
    values = json.loads(done.out)
    assert values["flops_ceiling"] > 1
    assert (values["attention_rank"], values["embedding_rank"]) == (6, 10)


def test_a_rank_above_the_vocabulary_of_the_data_is_refused(fastffn: Program) -> None:
    words = ("-o", "Model.hidden_size=512", "-o", "Model.embedding_rank=400")
    refused = fastffn("pretrain", "-c", "tiny.yaml", "--dry-run", *words)
    assert refused.code == 2
    assert "Model.embedding_rank 400 is above the 257 tokens of the data" in refused.err
