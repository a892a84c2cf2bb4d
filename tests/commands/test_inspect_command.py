"""`fastffn inspect`: runs, checkpoints, data folders, and paths that are none of them."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastffn_cli.engine.inspect_run import describe_run
from fastffn_cli.engine.terminal_plot import draw_curves
from tests.conftest import TrainedRun

pytestmark = pytest.mark.slow
Program = Callable[..., "subprocess.CompletedProcess[str]"]


def inspect(run_fastffn: Program, *arguments: str | Path) -> Any:
    done = run_fastffn("inspect", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_run_is_summed_up(run_fastffn: Program, trained_run: TrainedRun) -> None:
    run = inspect(run_fastffn, trained_run.dir)
    assert (run["kind"], run["stage"], run["state"]) == ("run", "pretrain", "finished")
    assert (run["steps"], run["planned_steps"]) == (8, 8)
    assert run["tokens"] == 8 * 8 * 32
    assert [each["step"] for each in run["eval"]] == [4, 8]
    assert [saved["step"] for saved in run["checkpoints"]] == [4, 8]
    assert run["tokens_per_s"] > 0
    assert run["ffn"]["rank"] == 4


def test_run_is_shown_with_a_plot(run_fastffn: Program, trained_run: TrainedRun) -> None:
    done = run_fastffn("inspect", trained_run.dir, env={"PYTHONIOENCODING": "utf-8"})
    assert done.returncode == 0, done.stderr
    assert "8 of 8" in done.stdout
    assert "step-00000008" in done.stdout
    assert "train (dots), valid (o)" in done.stdout


def test_run_is_shown_where_only_ascii_prints(
    run_fastffn: Program, trained_run: TrainedRun
) -> None:
    done = run_fastffn("inspect", trained_run.dir, env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()


def test_plot_is_drawn_into_a_file(
    run_fastffn: Program, trained_run: TrainedRun, tmp_path: Path
) -> None:
    done = run_fastffn("inspect", trained_run.dir, "--plot", tmp_path / "loss.png")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_checkpoint_shows_ranks_and_parameters(
    run_fastffn: Program, trained_run: TrainedRun
) -> None:
    checkpoint = inspect(run_fastffn, trained_run.checkpoint_dir, "--tensors")
    assert (checkpoint["kind"], checkpoint["step"]) == ("checkpoint", 8)
    feed_forward = 2 * 4 * (32 + 128) + 32 + 128
    assert checkpoint["layers"] == [
        {"layer": index, "kind": "low_rank", "ranks": [4, 4], "parameters": feed_forward}
        for index in range(2)
    ]
    shapes = {tensor["name"]: tensor["shape"] for tensor in checkpoint["tensors"]}
    assert shapes["layers.0.ffn.linear1.left"] == [32, 4]
    assert checkpoint["parameters"] == sum(math.prod(shape) for shape in shapes.values())
    assert {tensor["dtype"] for tensor in checkpoint["tensors"]} == {"float32"}
    assert checkpoint["tokenizer"] == "bytes"


def test_checkpoint_lists_tensors_only_when_asked(
    run_fastffn: Program, trained_run: TrainedRun
) -> None:
    plain = run_fastffn("inspect", trained_run.checkpoint_dir)
    listed = run_fastffn("inspect", trained_run.checkpoint_dir, "--tensors")
    assert "low_rank, ranks 4 and 4" in plain.stdout
    assert "word_embeddings.weight" not in plain.stdout
    assert "word_embeddings.weight" in listed.stdout


def test_altered_checkpoint_is_refused(
    run_fastffn: Program, trained_run: TrainedRun, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(trained_run.checkpoint_dir, copy)
    content = bytearray((copy / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (copy / "model.safetensors").write_bytes(content)
    done = run_fastffn("inspect", copy)
    assert done.returncode == 2
    assert "model.safetensors does not match its sha256" in done.stderr


def test_data_folder_is_counted_and_decoded(run_fastffn: Program, data_dir: Path) -> None:
    data = inspect(run_fastffn, data_dir)
    assert (data["kind"], data["documents"]) == ("data", 60)
    done = run_fastffn("inspect", data_dir)
    assert f"{data['tokens']:,} in 60 documents" in done.stdout
    assert repr(data["rows"][0]["text"]) in done.stdout


@pytest.mark.parametrize("name", [".", "nowhere"])
def test_other_paths_are_refused(run_fastffn: Program, name: str) -> None:
    done = run_fastffn("inspect", name)
    assert done.returncode == 2
    assert "PATH is a run folder" in done.stderr


def test_option_of_another_kind_is_refused(run_fastffn: Program, data_dir: Path) -> None:
    done = run_fastffn("inspect", data_dir, "--plot", "x.png")
    assert done.returncode == 2
    assert "--plot is for a run" in done.stderr


def test_last_record_of_a_step_counts_and_pauses_do_not(
    trained_run: TrainedRun, tmp_path: Path
) -> None:
    shutil.copy(trained_run.dir / "config.yaml", tmp_path)
    records = [
        {"event": "start", "stage": "pretrain", "max_steps": 9, "time": 100.0},
        {"event": "train", "step": 1, "loss": 5.0, "tokens": 10, "time": 101.0},
        {"event": "train", "step": 2, "loss": 1.0, "tokens": 20, "tokens_per_s": 5, "time": 103.0},
        {"event": "resume", "stage": "pretrain", "max_steps": 9, "time": 900.0},
        {"event": "train", "step": 2, "loss": 4.0, "tokens": 20, "tokens_per_s": 7, "time": 902.0},
    ]
    lines = [json.dumps(record) for record in records]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"event": "tr')
    run = describe_run(tmp_path)
    assert (run["steps"], run["loss"], run["tokens"], run["tokens_per_s"]) == (2, 4.0, 20, 7)
    assert run["best_loss"] == {"step": 2, "loss": 4.0}
    assert run["wall_s"] == 5.0
    assert (run["processes"], run["state"]) == (2, "unfinished")


def test_a_run_of_several_processes_names_them_and_their_layout(
    trained_run: TrainedRun, tmp_path: Path, run_fastffn: Program
) -> None:
    shutil.copy(trained_run.dir / "config.yaml", tmp_path)
    start = {"event": "start", "stage": "pretrain", "max_steps": 9, "time": 100.0}
    layout = "dp 2 x mp 2, 1 x 4 sequences"
    for record, cards, shown in (
        (start | {"processes": 4, "layout": layout}, 4, f"\nlayout  4 processes: {layout}\n"),
        (start | {"processes": 4}, 4, "\nlayout  4 processes\n"),
        (start, 1, ""),
    ):
        (tmp_path / "metrics.jsonl").write_text(json.dumps(record) + "\n")
        described = describe_run(tmp_path)
        assert (described["cards"], described["layout"]) == (cards, record.get("layout"))
        done = run_fastffn("inspect", tmp_path)
        assert done.returncode == 0, done.stderr
        assert shown in done.stdout
        assert ("layout" in done.stdout) is (cards > 1)


def test_curve_falls_from_the_upper_left_to_the_lower_right() -> None:
    points = [(step, 10.0 - step) for step in range(10)]
    lines = draw_curves({"train": points}, width=10, height=10, ascii_only=True)
    rows = [line.split("|", 1)[1] for line in lines[:10]]
    assert [row.index(".") for row in rows] == list(range(10))
    assert lines[0].startswith("10.000")
    assert lines[9].strip().startswith("1.000")


def test_points_that_are_not_finite_are_left_out() -> None:
    assert draw_curves({"train": [(1, math.nan), (2, math.inf)]}) == []
    assert draw_curves({"train": [(1, 2.0), (2, math.nan)]})[0].endswith("⠁")
