"""Checkpoints: self-contained folders of safetensors and JSON, never pickle.

model.safetensors       weights by their place in the model, float32
optimizer.safetensors   moments and float32 masters (absent in converted checkpoints)
trainer.json            step, tokens, data cursor, random seed, scaler, what made it
config.yaml             the resolved configuration
tokenizer*.json         the tokenizer, when the data had one
manifest.json           sizes and sha256, written last
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import numpy as np

from fastffn_cli.config.dump import dump_config
from fastffn_cli.config.load import parse_config_file
from fastffn_cli.config.schema import Config
from fastffn_cli.engine import storage
from fastffn_cli.engine.tensor_file import (
    StoredTensor,
    open_safetensors,
    stored,
    write_safetensors,
)
from fastffn_cli.errors import CheckpointError

if TYPE_CHECKING:
    from fastffn_cli.data.tokenizer import Tokenizer
    from models.gpt import GPT

MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
TRAINER_FILE = "trainer.json"
CONFIG_FILE = "config.yaml"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_meta.json")
FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint folder; tensors are read when asked for."""

    path: Path
    config: Config
    trainer: dict[str, Any]

    @property
    def step(self) -> int:
        """Updates made so far by the run that wrote it."""
        return int(self.trainer["step"])

    @property
    def ffn_kind(self) -> str:
        """Kind of the feed-forward layers in it."""
        return str(self.config.Model.ffn.kind)

    def weights(self) -> Mapping[str, StoredTensor]:
        """Weights by name, still in their file."""
        return open_safetensors(self.path / MODEL_FILE)

    def tensors(self) -> dict[str, np.ndarray]:
        """Weights by name, in memory."""
        return {name: tensor.read() for name, tensor in self.weights().items()}

    def optimizer_tensors(self) -> Mapping[str, StoredTensor]:
        """Optimizer tensors by name, still in their file; none where the checkpoint has none."""
        file = self.path / OPTIMIZER_FILE
        return open_safetensors(file) if file.exists() else {}

    def optimizer_state(self) -> dict[str, np.ndarray]:
        """Optimizer tensors by name, in memory."""
        return {name: tensor.read() for name, tensor in self.optimizer_tensors().items()}

    @cached_property
    def _tokenizer(self) -> Tokenizer | None:
        from fastffn_cli.data.tokenizer import Tokenizer

        if not (self.path / TOKENIZER_FILES[0]).exists():
            return None
        return Tokenizer.load(self.path)

    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer saved with the weights, if the data had one."""
        return self._tokenizer


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to use, in eval mode on the current device."""

    model: GPT
    config: Config
    tokenizer: Tokenizer | None
    step: int
    path: Path
    trainer: dict[str, Any] = field(default_factory=dict)


def write_checkpoint(
    final_dir: Path,
    *,
    config: Config,
    trainer: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray | StoredTensor],
    optimizer_state: Mapping[str, np.ndarray] | None = None,
    tokenizer_dir: Path | None = None,
    tokenizer: Tokenizer | None = None,
) -> None:
    """Write a checkpoint folder atomically, one tensor in memory at a time.

    The tokenizer is copied from `tokenizer_dir`, or else saved from `tokenizer`. Raises `DiskFull`,
    before or while writing, leaving nothing behind; `UserError` if the folder exists.
    """
    files = {}
    if optimizer_state:  # first, so that the sum of the larger file is begun first
        files[OPTIMIZER_FILE] = {name: stored(array) for name, array in optimizer_state.items()}
    files[MODEL_FILE] = {name: stored(tensor) for name, tensor in tensors.items()}
    needed = sum(tensor.nbytes for part in files.values() for tensor in part.values())
    storage.check_room(final_dir, needed + (1 << 20))
    digests = storage.Digests()
    with storage.new_folder(final_dir, digests=digests) as folder:
        for name, part in files.items():
            write_safetensors(folder / name, part)
            digests.begin(folder / name)
        record = {"format": FORMAT, **trainer, "saved_at": time.time()}
        storage.write_json(folder / TRAINER_FILE, record)
        storage.write_file(folder / CONFIG_FILE, dump_config(config))
        for name in TOKENIZER_FILES:
            if tokenizer_dir is not None and (tokenizer_dir / name).exists():
                storage.write_file(folder / name, (tokenizer_dir / name).read_bytes())
        if tokenizer is not None and tokenizer_dir is None:
            tokenizer.save(folder)


def read_checkpoint(path: Path, *, checksums: bool = True) -> Checkpoint:
    """Open a checkpoint folder after checking that it is whole.

    Raises `CheckpointError` naming the file that is missing, short or altered.
    """
    _refuse_damaged(path, storage.damage(path, checksums=checksums))
    try:
        trainer = json.loads((path / TRAINER_FILE).read_text(encoding="utf-8"))
        if trainer["format"] != FORMAT:
            raise CheckpointError(
                f"{path} has checkpoint format {trainer['format']}; this version reads {FORMAT}"
            )
        int(trainer["step"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path / TRAINER_FILE} is not readable: {error}") from error
    return Checkpoint(path, parse_config_file(path / CONFIG_FILE), trainer)


def _refuse_damaged(path: Path, problem: str | None) -> None:
    if problem:
        raise CheckpointError(f"{path} is not a whole checkpoint: {problem}")


def read_tensors(file: Path) -> dict[str, np.ndarray]:
    """Read all tensors of a safetensors file; raises `CheckpointError` naming the file."""
    return {name: tensor.read() for name, tensor in open_safetensors(file).items()}


def model_tensors(model: GPT) -> dict[str, np.ndarray]:
    """A model's parameters as float32 arrays (exact for half precision), float64 as it is."""
    import paddle

    arrays = {}
    for name, parameter in model.named_parameters():
        if parameter.dtype not in (paddle.float32, paddle.float64):
            parameter = parameter.astype("float32")
        arrays[name] = parameter.numpy()
    return arrays


def set_weights(
    model: GPT, tensors: Mapping[str, np.ndarray | StoredTensor], origin: Path | str
) -> None:
    """Copy `tensors` into the model, one after the other; all names and shapes must match.

    Raises `CheckpointError` listing what is missing, unknown or of another shape.
    """
    import paddle

    parameters = dict(model.named_parameters())
    problems = [f"missing: {name}" for name in parameters if name not in tensors]
    problems += [f"unknown: {name}" for name in tensors if name not in parameters]
    problems += [
        f"{name} is {list(tensors[name].shape)}, the model needs {list(parameter.shape)}"
        for name, parameter in parameters.items()
        if name in tensors and list(tensors[name].shape) != list(parameter.shape)
    ]
    if problems:
        shown = "\n".join(problems[:8]) + (f"\n... {len(problems)} in all" * (len(problems) > 8))
        raise CheckpointError(f"{origin} does not fit the model:\n{shown}")
    for name, tensor in tensors.items():  # in the order of their file: half the time from a disk
        parameter, array = parameters[name], stored(tensor).view()
        if array.dtype.name == str(parameter.dtype).removeprefix("paddle."):
            parameter.set_value(array)  # copied once, not by way of another tensor
        else:
            parameter.set_value(paddle.to_tensor(array, dtype=parameter.dtype))


class Verification:
    """A checkpoint folder's checksums, computed from now on, on a thread of its own.

    Begun before paddle is imported they take no time. The optimizer's state is left out, for it
    does not become part of a model.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._problem: Future[str | None] = Future()
        # A daemon: a program that ends early does not wait for it.
        Thread(target=self._run, name="checksums", daemon=True).start()

    def _run(self) -> None:
        try:
            problem = storage.damage(self.path, checksums=True, unread=(OPTIMIZER_FILE,))
        except Exception as error:
            self._problem.set_exception(error)
        else:
            self._problem.set_result(problem)

    def require_whole(self) -> None:
        """Wait for the end; raises `CheckpointError` naming the file that is short or altered."""
        _refuse_damaged(self.path, self._problem.result())


def load_model(path: Path, verification: Verification | None = None) -> LoadedModel:
    """Build the model of a checkpoint folder, verified against its checksums.

    `verification` is that of the same folder, where it was begun earlier. Raises `CheckpointError`.
    """
    # Not at the same time: copying weights holds the interpreter's lock, and both become slower.
    (verification or Verification(path)).require_whole()
    return build_loaded(read_checkpoint(path, checksums=False))


def build_loaded(checkpoint: Checkpoint) -> LoadedModel:
    """Build the model of a checkpoint and load its weights.

    Raises `CheckpointError` when they do not fit its own configuration.
    """
    model = hollow_model(checkpoint.config)
    set_weights(model, checkpoint.weights(), checkpoint.path)
    model.eval()
    return LoadedModel(
        model,
        checkpoint.config,
        checkpoint.tokenizer(),
        checkpoint.step,
        checkpoint.path,
        checkpoint.trainer,
    )


def hollow_model(config: Config) -> GPT:
    """Build a model without values: its parameters have shapes and take no memory until set."""
    import paddle

    from fastffn_cli.engine.model import gpt_config
    from models.gpt import GPT

    with paddle.LazyGuard():
        return GPT(gpt_config(config))
