"""Files that are whole or absent."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastffn_cli.engine import storage
from fastffn_cli.errors import UserError
from tests.engine.runs import flip_byte


def make(folder: Path) -> Path:
    with storage.new_folder(folder) as inside:
        (inside / "a.bin").write_bytes(bytes(range(256)) * 40)
        (inside / "b.txt").write_text("second", encoding="utf-8")
    return folder


def test_a_new_folder_appears_with_a_manifest_of_everything_in_it(tmp_path: Path) -> None:
    folder = make(tmp_path / "deep" / "new")
    files = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"]
    assert set(files) == {"a.bin", "b.txt"}
    assert files["b.txt"]["size"] == 6
    assert storage.damage(folder, checksums=True) is None
    assert [path.name for path in folder.parent.iterdir()] == ["new"]


def test_nobody_sees_the_folder_before_it_is_whole(tmp_path: Path) -> None:
    with storage.new_folder(tmp_path / "new") as inside:
        (inside / "a").write_text("x", encoding="utf-8")
        assert not (tmp_path / "new").exists()
        assert inside.name.startswith(".")
    assert (tmp_path / "new" / "a").exists()


def test_an_error_while_writing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stop"), storage.new_folder(tmp_path / "new") as inside:
        (inside / "a").write_text("x", encoding="utf-8")
        raise ValueError("stop")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_no_room_becomes_a_message_and_leaves_nothing(tmp_path: Path, number: int) -> None:
    with (
        pytest.raises(storage.DiskFull, match="no room to write") as caught,
        storage.new_folder(tmp_path / "new"),
    ):
        raise OSError(number, os.strerror(number))
    assert caught.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_other_errors_of_the_system_are_not_renamed(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), storage.new_folder(tmp_path / "new"):
        raise PermissionError(errno.EACCES, "no")


def test_an_existing_folder_is_refused_and_untouched(tmp_path: Path) -> None:
    folder = make(tmp_path / "new")
    before = (folder / "a.bin").read_bytes()
    with pytest.raises(UserError, match="exists already"), storage.new_folder(folder):
        pytest.fail("the block must not run")
    assert (folder / "a.bin").read_bytes() == before


def test_too_little_room_is_known_before_writing(tmp_path: Path) -> None:
    with pytest.raises(storage.DiskFull, match="the disk has"):
        storage.check_room(tmp_path / "not" / "there" / "yet", 1 << 60)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: (folder / "a.bin").unlink(), "a.bin is missing"),
        (lambda folder: os.truncate(folder / "a.bin", 10239), "10239 bytes instead of 10240"),
        (lambda folder: flip_byte(folder / "a.bin", 5000), "a.bin does not match its sha256"),
        (lambda folder: (folder / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda folder: os.truncate(folder / "manifest.json", 30), "manifest.json is not readable"),
        (
            lambda folder: (folder / "manifest.json").write_text('{"files": [1]}', "utf-8"),
            "manifest.json is not readable",
        ),
        (
            lambda folder: (folder / "manifest.json").write_text(
                '{"files": {"../other": {"size": 1, "sha256": ""}}}', "utf-8"
            ),
            "../other is missing",
        ),
    ],
    ids=["deleted", "truncated", "flipped", "no manifest", "cut manifest", "list", "outside"],
)
def test_damage_is_found_and_named(tmp_path: Path, harm: object, message: str) -> None:
    folder = make(tmp_path / "new")
    assert callable(harm)
    harm(folder)
    assert message in (storage.damage(folder, checksums=True) or "whole")


def test_without_checksums_only_sizes_are_compared(tmp_path: Path) -> None:
    folder = make(tmp_path / "new")
    flip_byte(folder / "a.bin", 5000)
    assert storage.damage(folder) is None


def test_leftovers_of_dead_processes_go_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / f".step-00000001.{dead.pid}.tmp").mkdir()
    (tmp_path / f".step-00000001.{dead.pid}.tmp" / "model.safetensors").write_bytes(b"half")
    (tmp_path / f".latest.{dead.pid}.tmp").write_bytes(b"half")
    (tmp_path / ".step-00000000.0.tmp").mkdir()  # a deletion that was cut short
    (tmp_path / f".step-00000002.{os.getppid()}.tmp").mkdir()
    (tmp_path / ".notes.tmp").mkdir()
    (tmp_path / "step-00000003").mkdir()

    storage.remove_leftovers(tmp_path)

    assert {path.name for path in tmp_path.iterdir()} == {
        *(f".step-00000002.{os.getppid()}.tmp", ".notes.tmp", "step-00000003"),
    }


def test_a_small_file_is_replaced_whole(tmp_path: Path) -> None:
    file = tmp_path / "latest"
    storage.write_file(file, "step-1\n")
    storage.write_file(file, "step-2\n")
    assert file.read_text(encoding="utf-8") == "step-2\n"
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"file/run cannot be made: "):
        storage.make_folder(tmp_path / "file" / "run")


@pytest.mark.parametrize("size", [0, 1, storage.DIGEST_BYTES, storage.DIGEST_BYTES + 1])
def test_the_sum_is_that_of_the_whole_file(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    (tmp_path / "file").write_bytes(content)
    assert storage.sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_a_file_whose_sum_was_begun_early_has_it_in_the_manifest(tmp_path: Path) -> None:
    digests = storage.Digests()
    with storage.new_folder(tmp_path / "new", digests=digests) as inside:
        (inside / "early").write_bytes(b"a" * 3_000_000)
        digests.begin(inside / "early")
        (inside / "late").write_bytes(b"b")

    assert storage.damage(tmp_path / "new", checksums=True) is None
    flip_byte(tmp_path / "new" / "early", 5)
    assert storage.damage(tmp_path / "new", checksums=True) == "early does not match its sha256"
    assert storage.damage(tmp_path / "new", checksums=True, unread=("early",)) is None


def test_a_folder_that_fails_while_sums_are_computed_vanishes(tmp_path: Path) -> None:
    digests = storage.Digests()
    with (
        pytest.raises(ValueError, match="stop"),
        storage.new_folder(tmp_path / "new", digests=digests) as inside,
    ):
        (inside / "early").write_bytes(b"a" * 3_000_000)
        digests.begin(inside / "early")
        raise ValueError("stop")

    assert list(tmp_path.iterdir()) == []
