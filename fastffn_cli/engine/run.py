"""A run folder: what it holds, how it is begun, continued and never overwritten.

config.yaml     the resolved configuration
metrics.jsonl   one JSON object an event, append-only; for one step the last record wins
log.txt         FleetX-style lines
loss.png        the loss curve
checkpoints/    step-00000100/ ..., and `latest` naming the newest whole one
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastffn_cli.config.dump import dump_config
from fastffn_cli.config.schema import Config
from fastffn_cli.engine import storage
from fastffn_cli.engine.checkpoint import CONFIG_FILE, write_checkpoint
from fastffn_cli.engine.find import CHECKPOINTS_DIR, LATEST, newest_of_run
from fastffn_cli.errors import UserError

METRICS_FILE = "metrics.jsonl"
LOG_FILE = "log.txt"
PLOT_FILE = "loss.png"


class Run:
    """An open run folder: metrics and log lines are flushed as they come.

    One process at a time: raises `UserError` while another one trains in the folder.
    """

    def __init__(self, run_dir: Path) -> None:
        self.dir = run_dir
        self.checkpoints_dir = run_dir / CHECKPOINTS_DIR
        self._metrics = (run_dir / METRICS_FILE).open("a", encoding="utf-8")
        try:
            storage.lock(self._metrics)
        except BlockingIOError as error:
            self._metrics.close()
            raise UserError(
                f"another process is training in {run_dir}; nothing was touched",
                hint="Wait for it, or stop it with Ctrl-C: it saves first",
            ) from error
        self._log = (run_dir / LOG_FILE).open("a", encoding="utf-8")

    @classmethod
    def create(cls, run_dir: Path, config: Config) -> Run:
        """Begin a new run; raises `UserError` if the folder holds one already."""
        refuse_existing(run_dir)
        storage.make_folder(run_dir)
        with storage.explain_full_disk(run_dir):
            (run_dir / CHECKPOINTS_DIR).mkdir(exist_ok=True)
            storage.write_file(run_dir / CONFIG_FILE, dump_config(config))
            return cls(run_dir)

    @classmethod
    def reopen(cls, run_dir: Path) -> Run:
        """Continue an existing run; mends a last metrics line that a kill cut short."""
        with storage.explain_full_disk(run_dir):
            (run_dir / CHECKPOINTS_DIR).mkdir(parents=True, exist_ok=True)
            run = cls(run_dir)
            storage.remove_leftovers(run_dir)
            storage.remove_leftovers(run_dir / CHECKPOINTS_DIR)
            _end_with_newline(run_dir / METRICS_FILE)
            _end_with_newline(run_dir / LOG_FILE)
            return run

    def record(self, event: str, **values: Any) -> None:
        """Append one object to metrics.jsonl; values that are not finite become null."""
        finite = {
            key: None if isinstance(value, float) and not np.isfinite(value) else value
            for key, value in values.items()
        }
        line = json.dumps({"event": event, **finite, "time": round(time.time(), 3)})
        self._append(self._metrics, line)

    def log(self, line: str) -> None:
        """Append one line to log.txt."""
        self._append(self._log, line)

    def _append(self, file: Any, line: str) -> None:
        with storage.explain_full_disk(self.dir):
            file.write(line + "\n")
            file.flush()

    def checkpoint_dir(self, step: int) -> Path:
        """Where the checkpoint of this step lives."""
        return self.checkpoints_dir / f"step-{step:08d}"

    def save(
        self,
        *,
        config: Config,
        trainer: Mapping[str, Any],
        tensors: Mapping[str, np.ndarray],
        optimizer_state: Mapping[str, np.ndarray],
        tokenizer_dir: Path | None,
        keep_last: int,
    ) -> Path:
        """Write the checkpoint of `trainer["step"]`, point `latest` at it, delete old ones."""
        final_dir = self.checkpoint_dir(int(trainer["step"]))
        if final_dir.exists() and storage.damage(final_dir, checksums=True):
            storage.remove_folder(final_dir)  # a run that fell back behind it has come here again
        if not final_dir.exists():
            write_checkpoint(
                final_dir,
                config=config,
                trainer=trainer,
                tensors=tensors,
                optimizer_state=optimizer_state,
                tokenizer_dir=tokenizer_dir,
            )
        storage.write_file(self.checkpoints_dir / LATEST, final_dir.name + "\n")
        if keep_last:
            # Later steps can only be damaged ones that a resumed run has not reached again.
            reached = [old for old in self._folders() if old.name <= final_dir.name]
            for old in reached[:-keep_last]:
                storage.remove_folder(old)
        return final_dir

    def _folders(self) -> list[Path]:
        return sorted(self.checkpoints_dir.glob("step-*"))

    def close(self) -> None:
        """Close the files; a line that a full disk refused was reported when it was written."""
        for file in (self._metrics, self._log):
            with contextlib.suppress(OSError):
                file.close()


class Bystander:
    """The run folder as the processes see it that write nothing; the main one does it for all."""

    def __init__(self, run_dir: Path) -> None:
        self.dir = run_dir
        self.checkpoints_dir = run_dir / CHECKPOINTS_DIR

    def checkpoint_dir(self, step: int) -> Path:
        """Where the checkpoint of this step lives."""
        return self.checkpoints_dir / f"step-{step:08d}"

    def record(self, event: str, **values: Any) -> None:
        """Leave it to the main process."""

    def log(self, line: str) -> None:
        """Leave it to the main process."""

    def save(self, *, trainer: Mapping[str, Any], **_state: Any) -> Path:
        """Leave it to the main process; say where it saves."""
        return self.checkpoint_dir(int(trainer["step"]))

    def close(self) -> None:
        """There is nothing to close."""


def holds_run(run_dir: Path) -> bool:
    """Whether a folder is (the beginning of) a run."""
    return (run_dir / METRICS_FILE).exists() or (run_dir / CHECKPOINTS_DIR).is_dir()


def refuse_existing(run_dir: Path) -> None:
    """Raise `UserError` if a new run in this folder would mix with what is there."""
    another = f"-o Engine.save_load.output_dir={run_dir}-2"
    if holds_run(run_dir):
        raise UserError(
            f"{run_dir} holds a run already ({_describe(run_dir)}); it was not touched",
            hint=f"Continue it with --resume, or start another: {another}",
        )
    if run_dir.exists() and not run_dir.is_dir():
        raise UserError(f"{run_dir} is a file; a run is a folder", hint=f"Type: {another}")
    taken = [name for name in (CONFIG_FILE, LOG_FILE, PLOT_FILE) if (run_dir / name).exists()]
    if taken:
        raise UserError(
            f"{run_dir} has a {taken[0]} that no run wrote; it was not touched",
            hint=f"Give the run a folder of its own: {another}",
        )


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Return all whole records of metrics.jsonl, in order; a cut last line is left out."""
    records: list[dict[str, Any]] = []
    file = run_dir / METRICS_FILE
    if not file.exists():
        return records
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            records.append(value)
    return records


def series(records: list[dict[str, Any]], event: str, key: str) -> list[tuple[int, float]]:
    """Return (step, value) of one kind of record; the last record of a step wins."""
    points = {
        int(record["step"]): float(record[key])
        for record in records
        if record.get("event") == event and record.get(key) is not None
    }
    return sorted(points.items())


def steps_of(records: list[dict[str, Any]], event: str) -> list[int]:
    """Return the steps of one kind of record, each once."""
    return sorted({int(record["step"]) for record in records if record.get("event") == event})


def _describe(run_dir: Path) -> str:
    newest, _ = newest_of_run(run_dir, checksums=False)
    steps = series(read_metrics(run_dir), "train", "loss")
    reached = f"step {steps[-1][0]}" if steps else "no step yet"
    return f"{reached}, newest checkpoint {newest.name if newest else 'none'}"


def _end_with_newline(file: Path) -> None:
    if not file.exists() or not file.stat().st_size:
        return
    with file.open("rb+") as opened:
        opened.seek(-1, 2)
        if opened.read(1) != b"\n":
            opened.write(b"\n")
