"""Which checkpoint is meant: by path, or the newest one of the newest run nearby."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastffn_cli.config.ffn import is_dense
from fastffn_cli.engine import storage
from fastffn_cli.engine.checkpoint import TRAINER_FILE
from fastffn_cli.errors import CheckpointError

CHECKPOINTS_DIR = "checkpoints"
LATEST = "latest"
SEARCH_DEPTH = 5  # ./runs/NAME/checkpoints/step-N is four levels down


@dataclass(frozen=True)
class Candidate:
    """A whole checkpoint folder and what its `trainer.json` says."""

    path: Path
    trainer: dict[str, Any]

    @property
    def is_dense(self) -> bool:
        """Whether no part of its model is in a cheaper form."""
        return is_dense(self.trainer)

    @property
    def is_converted(self) -> bool:
        """Whether `fastffn convert` made it."""
        return self.trainer.get("stage") == "convert"

    @property
    def age_key(self) -> tuple[float, int]:
        """Sorts by when it was saved, then by step."""
        return float(self.trainer.get("saved_at", 0.0)), int(self.trainer.get("step", 0))


def find_checkpoint(
    path: Path | None,
    *,
    low_rank: bool = False,
    dense: bool = False,
    converted: bool = False,
    action: str = "use",
) -> Path:
    """Return the checkpoint folder that `path` means.

    `path` is a checkpoint folder, or a run folder (its newest whole checkpoint, converted ones
    included), or None for the newest run below the current folder. `low_rank`, `dense` and
    `converted` restrict the choice among several. Raises `CheckpointError` saying what was looked
    at and what to type.
    """
    if path is not None and not path.exists():
        raise CheckpointError(f"{path} does not exist")
    if path is not None and (path / TRAINER_FILE).exists():
        return path
    root = path if path is not None else Path()
    wanted = "stage-1" if low_rank else "dense" if dense else "whole"
    if converted:
        wanted = f"converted {wanted}"
    found = [
        candidate
        for candidate in scan(root)
        if not (low_rank and candidate.is_dense)
        and not (dense and not candidate.is_dense)
        and not (converted and not candidate.is_converted)
    ]
    if not found:
        place = f"{path}" if path is not None else f"the current folder ({Path.cwd()})"
        _refuse_foreign(path)
        raise CheckpointError(
            f"no {wanted} checkpoint to {action} in {place}",
            hint=(
                f"Make a dense one with: fastffn convert{f' {path}' if path is not None else ''}"
                if dense
                else "Name a checkpoint or run folder, or train one: fastffn pretrain -c FILE"
            ),
        )
    return max(found, key=lambda candidate: candidate.age_key).path


def _refuse_foreign(path: Path | None) -> None:
    """Raise `CheckpointError` where `path` holds another system's checkpoint."""
    from fastffn_cli.interop.registry import recognise

    system = recognise(path) if path is not None and not holds_native(path) else None
    if system is not None:
        raise CheckpointError(
            f"{path} is a checkpoint of {system.title}; it has to be converted first",
            hint=f"Type: fastffn convert {shlex.quote(str(path))} --out DIR",
        )


def holds_native(path: Path) -> bool:
    """Whether `path` is, or has below it, something that fastffn wrote, whole or damaged."""
    if not path.is_dir():
        return False
    marks = (TRAINER_FILE, storage.MANIFEST, CHECKPOINTS_DIR, "metrics.jsonl")
    return any((path / mark).exists() for mark in marks) or next(scan(path), None) is not None


def scan(root: Path) -> Iterator[Candidate]:
    """Yield every whole checkpoint at or below `root`, hidden and environment folders left out."""
    base_depth = len(root.absolute().parts)
    for folder, names, files in os.walk(root):
        here = Path(folder)
        depth = len(here.absolute().parts) - base_depth
        names[:] = sorted(
            name
            for name in names
            if depth < SEARCH_DEPTH
            and not name.startswith(".")
            and name not in ("node_modules", "__pycache__", "site-packages")
        )
        if TRAINER_FILE not in files:
            continue
        names[:] = []
        if storage.damage(here) is not None:
            continue
        try:
            trainer = json.loads((here / TRAINER_FILE).read_text(encoding="utf-8"))
            candidate = Candidate(here, trainer)
            _ = candidate.age_key, candidate.is_dense
        except (OSError, ValueError, TypeError, AttributeError):
            continue
        yield candidate


def newest_of_run(run_dir: Path, *, checksums: bool = True) -> tuple[Path | None, list[str]]:
    """Return the checkpoint that a run continues from, and remarks on damaged ones passed over.

    The newest whole one by step; `latest` is only a hint for people and other tools. Without
    `checksums` only sizes are looked at.
    """
    remarks: list[str] = []
    folders = sorted((run_dir / CHECKPOINTS_DIR).glob("step-*"), reverse=True)
    for folder in folders:
        problem = storage.damage(folder, checksums=checksums)
        if problem is None:
            return folder, remarks
        remarks.append(f"{folder} is passed over: {problem}")
    return None, remarks
