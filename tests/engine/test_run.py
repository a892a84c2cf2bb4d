"""The run folder: begun once, continued, its records readable after anything."""

from __future__ import annotations

import json
import math
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from fastffn_cli.engine.checkpoint import read_checkpoint
from fastffn_cli.engine.logline import stamped
from fastffn_cli.engine.run import Run, holds_run, read_metrics, refuse_existing, series
from fastffn_cli.errors import UserError
from tests.conftest import TrainedRun
from tests.engine.runs import flip_byte


@pytest.fixture
def run(tmp_path: Path, trained_run: TrainedRun) -> Run:
    return Run.create(tmp_path / "run", read_checkpoint(trained_run.checkpoint_dir).config)


def save(run: Run, step: int, keep_last: int, value: float = 1.0) -> Path:
    return run.save(
        config=read_checkpoint_config(run),
        trainer={"step": step},
        tensors={"w": np.full(100, value, np.float32)},
        optimizer_state={},
        tokenizer_dir=None,
        keep_last=keep_last,
    )


def read_checkpoint_config(run: Run):  # type: ignore[no-untyped-def]
    from fastffn_cli.config.load import parse_config_file

    return parse_config_file(run.dir / "config.yaml")


def names(run: Run) -> list[str]:
    return sorted(path.name for path in run.checkpoints_dir.glob("step-*"))


def test_records_come_back_in_order_and_numbers_that_are_not_finite_are_null(run: Run) -> None:
    run.record("train", step=1, loss=2.5)
    run.record("train", step=2, loss=math.nan, grad_norm=math.inf)
    run.close()
    for line in (run.dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        json.loads(line, parse_constant=pytest.fail)
    first, second = read_metrics(run.dir)
    assert (first["event"], first["step"], first["loss"]) == ("train", 1, 2.5)
    assert (second["loss"], second["grad_norm"]) == (None, None)


def test_the_last_record_of_a_step_wins(run: Run) -> None:
    for step, loss in ((1, 9.0), (2, 8.0), (2, 7.0), (3, 6.0)):
        run.record("train", step=step, loss=loss)
    run.record("eval", step=2, loss=1.0)
    run.close()
    assert series(read_metrics(run.dir), "train", "loss") == [(1, 9.0), (2, 7.0), (3, 6.0)]


def test_a_line_that_a_kill_cut_short_does_not_spoil_the_next_one(run: Run) -> None:
    run.record("train", step=1, loss=9.0)
    run.close()
    with (run.dir / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"event": "train", "step": 2, "lo')

    again = Run.reopen(run.dir)
    again.record("train", step=2, loss=8.0)
    again.close()

    assert series(read_metrics(run.dir), "train", "loss") == [(1, 9.0), (2, 8.0)]


def test_keep_last_counts_the_newest_and_zero_keeps_all(run: Run) -> None:
    for step in (1, 2, 3):
        save(run, step, keep_last=0)
    assert len(names(run)) == 3
    save(run, 4, keep_last=2)
    assert names(run) == ["step-00000003", "step-00000004"]


def test_a_damaged_later_checkpoint_neither_counts_nor_stays(run: Run) -> None:
    """A run fell back behind a damaged step 20; the step it saves next must not be the victim."""
    save(run, 10, keep_last=1)
    damaged = save(run, 20, keep_last=0) / "model.safetensors"
    flip_byte(damaged, damaged.stat().st_size - 1)

    save(run, 15, keep_last=1)
    assert names(run) == ["step-00000015", "step-00000020"]
    save(run, 20, keep_last=1, value=3.0)

    assert names(run) == ["step-00000020"]
    tensors = read_checkpoint(run.checkpoints_dir / "step-00000020").tensors()
    np.testing.assert_array_equal(tensors["w"], np.full(100, 3.0, np.float32))


def test_saving_a_step_twice_writes_it_once(run: Run) -> None:
    folder = save(run, 5, keep_last=3)
    before = (folder / "manifest.json").stat().st_ino
    assert save(run, 5, keep_last=3) == folder
    assert (folder / "manifest.json").stat().st_ino == before


def test_a_run_is_begun_once(run: Run, tmp_path: Path) -> None:
    run.close()
    assert holds_run(run.dir)
    with pytest.raises(UserError, match="holds a run already"):
        refuse_existing(run.dir)
    assert not holds_run(tmp_path)
    refuse_existing(tmp_path)


def test_two_processes_cannot_train_in_one_run(run: Run) -> None:
    run.record("train", step=1, loss=9.0)
    with pytest.raises(UserError, match="another process is training in"):
        Run.reopen(run.dir)
    run.close()
    again = Run.reopen(run.dir)
    again.close()
    assert len(read_metrics(run.dir)) == 1


def test_a_file_in_the_place_of_the_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x", encoding="utf-8")
    with pytest.raises(UserError, match="is a file; a run is a folder"):
        refuse_existing(tmp_path / "out")


def test_the_stamp_is_fleetx_stamp() -> None:
    moment = datetime(2022, 7, 27, 12, 42, 46, 601_999)
    assert stamped("text", moment) == "[2022-07-27 12:42:46,601] [    INFO] - text"
