"""A disk that fills up stops the run with a message, and what was saved stays whole."""

from __future__ import annotations

import contextlib
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastffn_cli.engine.checkpoint import read_checkpoint
from fastffn_cli.engine.run import read_metrics
from tests.conftest import TrainedRun, Workplace
from tests.engine.runs import assert_same_state

pytestmark = pytest.mark.slow

GO_ON = (
    *("pretrain", "-c", "tiny.yaml", "--resume", "-o", "Engine.max_steps=40"),
    *("-o", "Engine.save_load.save_steps=2", "-o", "Engine.save_load.keep_last=0"),
)


def test_a_file_that_may_not_grow_stops_the_run_and_the_run_goes_on_later(
    workplace: Workplace, trained_run: TrainedRun
) -> None:
    shutil.copytree(trained_run.dir, workplace.run_dir)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 10, 64 << 10))

    stopped = workplace.run_fastffn(*GO_ON, preexec=limit)

    assert stopped.returncode == 2, stopped.stderr
    assert "disk full:\nno room to write runs/tiny/checkpoints/step-00000010" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    checkpoints = workplace.run_dir / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == [
        *("latest", "step-00000004", "step-00000008"),
    ]
    assert_same_state(checkpoints / "step-00000008", trained_run.checkpoint_dir)

    again = workplace.run_fastffn(*GO_ON, "-o", "Engine.max_steps=10")
    assert again.returncode == 0, again.stderr
    assert read_checkpoint(checkpoints / "step-00000010").step == 10


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """A file system of its own on `folder`; needs root."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode != 0:
        pytest.skip(f"no file system of its own: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_fills_up_keeps_every_checkpoint_that_fitted(workplace: Workplace) -> None:
    with small_disk(workplace.dir / "runs", "3m"):
        stopped = workplace.run_fastffn(*GO_ON)

        assert stopped.returncode == 2, stopped.stderr
        assert "disk full:\n" in stopped.stderr
        assert "Traceback" not in stopped.stderr
        folders = sorted((workplace.run_dir / "checkpoints").glob("step-*"))
        assert len(folders) >= 2
        for folder in folders:
            read_checkpoint(folder)
        assert not list((workplace.run_dir / "checkpoints").glob(".*"))
        assert read_metrics(workplace.run_dir)
        # Not a byte is free: even a line of the log may be refused, without a traceback.
        (workplace.dir / "runs" / "filler").write_bytes(b"")
        with contextlib.suppress(OSError), (workplace.dir / "runs" / "filler").open("wb") as file:
            while True:
                file.write(bytes(4096))
                file.flush()
        full = workplace.run_fastffn(*GO_ON)
        assert full.returncode == 2, full.stderr
        assert "disk full:\n" in full.stderr
        assert "Traceback" not in full.stderr
        assert sorted((workplace.run_dir / "checkpoints").glob("step-*")) == folders
