"""Further places for the numbers of a run, beside metrics.jsonl: TensorBoard and VisualDL.

Both are extras: their packages are imported when a run asks for them, never before.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from fastffn_cli.errors import UserError


class Sink(Protocol):
    """Takes named numbers of a step."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Store values such as {"train/loss": 3.2}."""

    def close(self) -> None:
        """Write what is buffered and close the files."""


class TensorBoard:
    """Event files for `tensorboard --logdir RUN`, written by tensorboardX."""

    def __init__(self, folder: Path) -> None:
        package = _import_package("tensorboard")
        self._writer = package.SummaryWriter(str(folder))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Store the values of a step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


class VisualDL:
    """Log files for `visualdl --logdir RUN`, PaddlePaddle's own viewer."""

    def __init__(self, folder: Path) -> None:
        package = _import_package("visualdl")
        self._writer = package.LogWriter(logdir=str(folder))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Store the values of a step."""
        for name, value in values.items():
            self._writer.add_scalar(tag=name, step=step, value=value)

    def close(self) -> None:
        """Close the log file."""
        self._writer.close()


SINKS: dict[str, Callable[[Path], Sink]] = {"tensorboard": TensorBoard, "visualdl": VisualDL}
PACKAGES = {"tensorboard": "tensorboardX", "visualdl": "visualdl"}


def open_sinks(names: Sequence[str], run_dir: Path) -> list[Sink]:
    """Open the sinks of `Engine.log_sinks`, each in a folder of its name below the run.

    Raises `UserError` with the command that installs a missing package.
    """
    return [SINKS[name](run_dir / name) for name in names]


def check_sinks(names: Sequence[str]) -> None:
    """Raise what `open_sinks` would raise for a missing package, without writing anything."""
    for name in names:
        _import_package(name)


def _import_package(sink: str) -> Any:
    package = PACKAGES[sink]
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(
            f"Engine.log_sinks: {sink} needs the package {package}, which cannot be imported "
            f"({error})",
            hint=f'pip install "fastffn[{sink}]"   or leave {sink} out of Engine.log_sinks',
        ) from error
