"""`fastffn posttrain`: stage 2 begins where stage 1 ended."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from fastffn_cli.engine.checkpoint import read_checkpoint
from fastffn_cli.engine.run import read_metrics, series
from fastffn_cli.engine.storage import MANIFEST, write_manifest
from tests.conftest import Outcome, TrainedRun, Workplace

Program = Callable[..., Outcome]

STAGE_2 = (
    *("posttrain", "-c", "tiny.yaml", "-o", "Model.ffn={kind: dense}"),
    *("-o", "Engine.save_load.output_dir=runs/post", "-o", "Engine.max_steps=2"),
)


@pytest.fixture
def stage_1(fastffn: Program, workplace: Workplace, trained_run: TrainedRun) -> Callable[[], Path]:
    """Copies the trained run; the returned function merges it."""
    shutil.copytree(trained_run.dir, workplace.run_dir)

    def merge() -> Path:
        assert fastffn("convert").code == 0
        return workplace.run_dir / "dense-step-00000008"

    return merge


def test_without_from_it_takes_the_newest_dense_checkpoint_and_says_so(
    fastffn: Program, workplace: Workplace, stage_1: Callable[[], Path]
) -> None:
    stage_1()

    done = fastffn(*STAGE_2)

    assert done.code == 0, done.err
    assert "starts from the weights of runs/tiny/dense-step-00000008 (step 8)" in done.err
    assert "next        fastffn eval runs/post/checkpoints/step-00000002" in done.err
    checkpoint = read_checkpoint(workplace.dir / "runs/post/checkpoints/step-00000002")
    assert checkpoint.trainer["stage"] == "posttrain"
    assert (checkpoint.step, checkpoint.trainer["cursor"]) == (2, 16)
    start = next(r for r in read_metrics(workplace.dir / "runs/post") if r["event"] == "start")
    assert start["start_from"] == "runs/tiny/dense-step-00000008"


def test_without_from_a_newer_dense_run_nearby_is_not_taken(
    fastffn: Program, workplace: Workplace, stage_1: Callable[[], Path]
) -> None:
    merged = stage_1()
    newer = workplace.dir / "runs/baseline/checkpoints/step-00000009"
    shutil.copytree(merged, newer)
    trainer = json.loads((newer / "trainer.json").read_text(encoding="utf-8"))
    trainer |= {"stage": "pretrain", "saved_at": trainer["saved_at"] + 60}
    (newer / "trainer.json").write_text(json.dumps(trainer), encoding="utf-8")
    (newer / MANIFEST).unlink()
    write_manifest(newer)

    done = fastffn(*STAGE_2)

    assert done.code == 0, done.err
    assert "starts from the weights of runs/tiny/dense-step-00000008 (step 8)" in done.err


def test_stage_2_starts_at_the_loss_of_stage_1(
    fastffn: Program, workplace: Workplace, stage_1: Callable[[], Path], trained_run: TrainedRun
) -> None:
    stage_1()
    done = fastffn(
        *(*STAGE_2, "-o", "Engine.max_steps=1", "-o", "Optimizer.lr.max_lr=1e-30"),
        *("-o", "Optimizer.lr.min_lr=0"),
    )
    assert done.code == 0, done.err
    ((_, after),) = series(read_metrics(workplace.dir / "runs/post"), "eval", "loss")
    before = series(read_metrics(trained_run.dir), "eval", "loss")[-1][1]
    assert after == pytest.approx(before, abs=1e-5)


def test_a_stage_1_checkpoint_is_refused_with_the_command_that_merges_it(
    fastffn: Program, workplace: Workplace, stage_1: Callable[[], Path]
) -> None:
    refused = fastffn(*STAGE_2, "--from", "runs/tiny/checkpoints/step-00000008")
    assert refused.code == 2
    assert "kind 'low_rank', Model.ffn asks for 'dense'" in refused.err
    assert "fastffn convert runs/tiny/checkpoints/step-00000008" in refused.err
    assert not (workplace.dir / "runs/post").exists()


def test_a_run_that_was_not_merged_yet_is_refused_with_convert(
    fastffn: Program, workplace: Workplace, stage_1: Callable[[], Path]
) -> None:
    refused = fastffn(*STAGE_2, "--from", "runs/tiny")
    assert refused.code == 2
    assert "no dense checkpoint to start from in runs/tiny" in refused.err
    assert "fastffn convert runs/tiny" in refused.err


def test_a_run_folder_means_its_merged_checkpoint(
    fastffn: Program, workplace: Workplace, stage_1: Callable[[], Path]
) -> None:
    stage_1()
    done = fastffn(*STAGE_2, "--from", "runs/tiny", "--dry-run")
    assert done.code == 0, done.err
    assert "starts from the weights of runs/tiny/dense-step-00000008" in done.err
    assert not (workplace.dir / "runs/post").exists()


def test_one_position_less_is_sliced(
    fastffn: Program, workplace: Workplace, stage_1: Callable[[], Path]
) -> None:
    merged = stage_1()
    done = fastffn(
        *(*STAGE_2, "-o", "Model.max_position_embeddings=31", "-o", "Data.dataset.max_seq_len=31"),
        *("-o", "Optimizer.lr.max_lr=1e-30", "-o", "Optimizer.lr.min_lr=0"),
    )
    assert done.code == 0, done.err
    name = "position_embeddings.weight"
    file = workplace.dir / "runs/post/checkpoints/step-00000002/model.safetensors"
    cut, whole = load_file(file)[name], load_file(merged / "model.safetensors")[name]
    assert cut.shape == (31, 32)
    assert cut.tobytes() == whole[:31].tobytes()


@pytest.mark.parametrize("more", [[], ["--dry-run"]], ids=["run", "dry run"])
def test_one_position_more_is_refused_at_once(
    fastffn: Program, workplace: Workplace, stage_1: Callable[[], Path], more: list[str]
) -> None:
    stage_1()
    refused = fastffn(*STAGE_2, "-o", "Model.max_position_embeddings=33", *more)
    assert refused.code == 2
    assert "has 32 positions, Model.max_position_embeddings asks for 33" in refused.err
    assert "-o Model.max_position_embeddings=32" in refused.err
    assert not (workplace.dir / "runs/post").exists()


def test_another_number_of_heads_is_refused(fastffn: Program, stage_1: Callable[[], Path]) -> None:
    stage_1()
    refused = fastffn(*STAGE_2, "-o", "Model.num_attention_heads=2")
    assert refused.code == 2
    assert "Model.num_attention_heads is 4 there, 2 here" in refused.err


def test_it_resumes_without_the_weights_it_began_with(
    fastffn: Program, workplace: Workplace, stage_1: Callable[[], Path]
) -> None:
    merged = stage_1()
    assert fastffn(*STAGE_2).code == 0
    shutil.rmtree(merged)
    done = fastffn(*STAGE_2, "--resume", "-o", "Engine.max_steps=3")
    assert done.code == 0, done.err
    assert "global step 3," in done.err
    assert "global step 2," not in done.err


def test_nothing_to_start_from_says_convert(fastffn: Program, workplace: Workplace) -> None:
    refused = fastffn(*STAGE_2)
    assert refused.code == 2
    assert "no converted dense checkpoint to start from in the current folder" in refused.err
    assert "fastffn convert" in refused.err


def test_pretrain_may_start_from_weights_too(
    fastffn: Program, workplace: Workplace, stage_1: Callable[[], Path]
) -> None:
    stage_1()
    done = fastffn(
        *("pretrain", "-c", "tiny.yaml", "-o", "Engine.save_load.output_dir=runs/second"),
        *("-o", "Engine.save_load.ckpt_dir=runs/tiny", "--dry-run"),
    )
    assert done.code == 0, done.err
    # The merged checkpoint beside it is newer, and of the wrong kind.
    assert "starts from the weights of runs/tiny/checkpoints/step-00000008" in done.err
