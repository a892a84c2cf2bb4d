"""What a run's metrics say: evaluations, switches, sessions, how it ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fastffn_cli.comparison.history import read_history

START = {"event": "start", "step": 0, "time": 100.0}


def write(run_dir: Path, *records: dict[str, Any]) -> Path:
    text = "".join(json.dumps(record) + "\n" for record in records)
    (run_dir / "metrics.jsonl").write_text(text, encoding="utf-8")
    return run_dir


def test_a_folder_without_a_run_has_no_history(tmp_path: Path) -> None:
    history = read_history(tmp_path / "absent", dense_first=False)
    assert not history.begun
    assert history.problem(10) == "unfinished: step 0 of 10"


def test_a_switch_divides_the_steps_and_costs_its_seconds(tmp_path: Path) -> None:
    run_dir = write(
        tmp_path,
        START,
        {"event": "eval", "step": 4, "loss": 5.0, "time": 104.0},
        {"event": "switch", "step": 4, "stage": "stage2", "seconds": 0.5, "time": 105.0},
        {"event": "eval", "step": 10, "loss": 3.0, "time": 120.0},
        {"event": "end", "step": 10, "time": 121.0},
    )
    history = read_history(run_dir, dense_first=False)
    assert history.evals == ((4, 5.0), (10, 3.0))
    assert history.switched_at == 4
    assert [history.dense_steps(step) for step in (0, 4, 5, 10)] == [0, 0, 1, 6]
    assert history.seconds(4, 1.0, 2.0) == 4.0
    assert history.seconds(10, 1.0, 2.0) == 4 + 2 * 6 + 0.5
    assert history.problem(10) is None
    assert history.wall_seconds == 21.0


def test_the_cost_of_a_switch_is_freed_of_a_slow_machine(tmp_path: Path) -> None:
    run_dir = write(
        tmp_path,
        START,
        # The first window builds kernels; then the machine is three times as slow as calibrated.
        {"event": "train", "step": 2, "step_s": 50.0, "tokens_per_s": None, "time": 101.0},
        {"event": "train", "step": 4, "step_s": 3.0, "tokens_per_s": 9.0, "time": 104.0},
        {"event": "switch", "step": 4, "stage": "stage2", "seconds": 1.5, "time": 105.0},
        {"event": "train", "step": 10, "step_s": 6.0, "tokens_per_s": 9.0, "time": 120.0},
    )
    history = read_history(run_dir, dense_first=False)
    assert history.slowness(1.0, 2.0) == 3.0
    assert history.seconds(10, 1.0, 2.0) == 4 + 2 * 6 + 0.5


def test_a_dense_start_counts_as_dense(tmp_path: Path) -> None:
    run_dir = write(
        tmp_path,
        START,
        {"event": "switch", "step": 2, "stage": "stage1", "seconds": 0.0, "time": 101.0},
        {"event": "switch", "step": 6, "stage": "stage2", "seconds": 0.0, "time": 102.0},
        {"event": "end", "step": 8, "time": 103.0},
    )
    history = read_history(run_dir, dense_first=True)
    assert history.dense_steps(8) == 2 + 2
    assert history.switched_at == 6


def test_what_a_resumed_run_did_again_counts_once(tmp_path: Path) -> None:
    run_dir = write(
        tmp_path,
        START,
        {"event": "eval", "step": 4, "loss": 5.0, "time": 110.0},
        {"event": "switch", "step": 5, "stage": "stage2", "seconds": 9.0, "time": 111.0},
        {"event": "eval", "step": 8, "loss": 1.0, "time": 112.0},
        {"event": "resume", "step": 4, "time": 200.0},
        {"event": "switch", "step": 5, "stage": "stage2", "seconds": 1.0, "time": 201.0},
        {"event": "eval", "step": 8, "loss": 4.0, "time": 203.0},
        {"event": "end", "step": 8, "time": 203.0},
    )
    history = read_history(run_dir, dense_first=False)
    assert history.evals == ((4, 5.0), (8, 4.0))
    assert history.extra == ((5, 1.0),)
    assert history.wall_seconds == pytest.approx(12 + 3)


def test_a_switch_behind_the_last_checkpoint_is_made_again_and_counts_once(tmp_path: Path) -> None:
    run_dir = write(
        tmp_path,
        START,
        {"event": "switch", "step": 5, "stage": "stage2", "seconds": 9.0, "time": 111.0},
        {"event": "resume", "step": 5, "time": 200.0},
        {"event": "switch", "step": 5, "stage": "stage2", "seconds": 1.0, "time": 201.0},
        {"event": "end", "step": 8, "time": 203.0},
    )
    history = read_history(run_dir, dense_first=False)
    assert history.changes == ((0, False), (5, True))
    assert history.extra == ((5, 1.0),)


def test_a_diverged_run_is_over_at_its_step(tmp_path: Path) -> None:
    run_dir = write(tmp_path, START, {"event": "diverged", "step": 7, "time": 101.0})
    history = read_history(run_dir, dense_first=False)
    assert history.is_over(10)
    assert history.problem(10) == "diverged at step 7"


def test_an_end_at_another_number_of_steps_is_unfinished(tmp_path: Path) -> None:
    run_dir = write(tmp_path, START, {"event": "end", "step": 7, "time": 101.0})
    history = read_history(run_dir, dense_first=False)
    assert not history.is_over(10)
    assert history.problem(10) == "unfinished: step 7 of 10"
