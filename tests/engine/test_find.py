"""Which checkpoint `find_checkpoint` means."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fastffn_cli.engine import storage
from fastffn_cli.engine.find import find_checkpoint, newest_of_run, scan
from fastffn_cli.errors import CheckpointError


def make(folder: Path, *, step: int, saved_at: float, kind: str = "low_rank") -> Path:
    with storage.new_folder(folder) as inside:
        (inside / "model.safetensors").write_bytes(b"weights")
        trainer = {"step": step, "saved_at": saved_at, "ffn": {"kind": kind}}
        (inside / "trainer.json").write_text(json.dumps(trainer), encoding="utf-8")
    return folder


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two stage-1 runs and a merged checkpoint; `late` was saved later, with fewer steps."""
    make(tmp_path / "runs/early/checkpoints/step-00000900", step=900, saved_at=10)
    make(tmp_path / "runs/early/dense-step-00000900", step=900, saved_at=30, kind="dense")
    make(tmp_path / "runs/late/checkpoints/step-00000001", step=1, saved_at=20)
    make(tmp_path / "runs/late/checkpoints/step-00000002", step=2, saved_at=25)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_without_a_path_the_newest_saved_one_counts(house: Path) -> None:
    assert find_checkpoint(None) == Path("runs/early/dense-step-00000900")


def test_filters_choose_by_kind(house: Path) -> None:
    assert find_checkpoint(None, low_rank=True) == Path("runs/late/checkpoints/step-00000002")
    assert find_checkpoint(None, dense=True) == Path("runs/early/dense-step-00000900")


def test_a_run_folder_means_its_newest_checkpoint(house: Path) -> None:
    assert find_checkpoint(Path("runs/late")) == Path("runs/late/checkpoints/step-00000002")


def test_a_checkpoint_folder_means_itself(house: Path) -> None:
    path = Path("runs/late/checkpoints/step-00000001")
    assert find_checkpoint(path) == path


def test_equal_times_are_decided_by_the_step(tmp_path: Path) -> None:
    make(tmp_path / "b/step-2", step=2, saved_at=1)
    newest = make(tmp_path / "a/step-3", step=3, saved_at=1)
    assert find_checkpoint(tmp_path) == newest


def test_incomplete_and_hidden_folders_are_not_checkpoints(house: Path) -> None:
    unfinished = make(house / "runs/late/checkpoints/step-00000003", step=3, saved_at=99)
    (unfinished / "manifest.json").unlink()
    make(house / "runs/late/checkpoints/.step-00000004.77.tmp", step=4, saved_at=99)
    make(house / ".venv/step-00000005", step=5, saved_at=99)
    broken = make(house / "runs/late/checkpoints/step-00000006", step=6, saved_at=99)
    (broken / "trainer.json").write_text("[]", encoding="utf-8")
    assert {candidate.trainer["step"] for candidate in scan(Path())} == {900, 1, 2}


def test_a_trainer_record_of_another_shape_is_no_candidate(tmp_path: Path) -> None:
    with storage.new_folder(tmp_path / "step-1") as inside:
        (inside / "trainer.json").write_text('{"step": 1, "ffn": null}', encoding="utf-8")
    assert list(scan(tmp_path)) == []


@pytest.mark.parametrize(
    ("path", "options", "message", "hint"),
    [
        ("nowhere", {}, "nowhere does not exist", None),
        (None, {"dense": True}, "no dense checkpoint to use in the current folder", "convert"),
        (None, {}, "no whole checkpoint to use in the current folder", "pretrain"),
    ],
)
def test_nothing_found_says_where_and_what_to_type(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    path: str | None,
    options: dict[str, bool],
    message: str,
    hint: str | None,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=message) as caught:
        find_checkpoint(Path(path) if path else None, **options)
    assert hint is None or hint in (caught.value.hint or "")


def test_newest_of_run_goes_by_step_and_passes_over_damage(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        make(tmp_path / f"checkpoints/step-{step:08d}", step=step, saved_at=100 - step)
    (tmp_path / "checkpoints/step-00000015/model.safetensors").write_bytes(b"wEights")

    newest, remarks = newest_of_run(tmp_path)

    assert newest == tmp_path / "checkpoints/step-00000010"
    assert len(remarks) == 1
    assert "step-00000015 is passed over: model.safetensors does not match its sha256" in remarks[0]


def test_newest_of_an_empty_run_is_none(tmp_path: Path) -> None:
    assert newest_of_run(tmp_path) == (None, [])
