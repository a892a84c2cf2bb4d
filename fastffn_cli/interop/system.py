"""What a system of checkpoints answers: the protocol behind `convert --from` and `--format`.

A system is one module with one object of this protocol and one line in the registry. It knows file
formats, names and metadata; what happens to a model is no business of it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from fastffn_cli.config.schema import Config, ModelSection
from fastffn_cli.data.tokenizer import Tokenizer
from fastffn_cli.engine.tensor_file import StoredTensor
from fastffn_cli.interop.layout import Rule


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A foreign checkpoint whose headers were read.

    `title` says what it is (`Hugging Face GPT-2, 2 shards`), `tensors` are named and arranged as
    theirs, shards of one tensor put together. `model` holds keys of the `Model` section as far as
    the files tell them (`num_attention_heads` often is not told), an `ffn` block included.
    `ignored` are entries that are no weights, such as optimizer state. `notices` are good to know.
    """

    title: str
    path: Path
    tensors: Mapping[str, StoredTensor]
    model: Mapping[str, Any]
    step: int = 0
    ignored: Collection[str] = ()
    notices: Sequence[str] = ()
    tokenizer: Callable[[], Tokenizer | None] = field(default=lambda: None)


@dataclass(frozen=True, kw_only=True)
class Export:
    """What a system writes: `tensors` are named and arranged as theirs already (float32).

    `write` adds to `notices` where the files compute something else than the model does.
    """

    config: Config
    tensors: Mapping[str, StoredTensor]
    step: int
    tokenizer: Tokenizer | None
    notices: list[str] = field(default_factory=list)


def loss_of_masked_token(title: str, model: ModelSection) -> list[str]:
    """Say, for systems without `Model.masked_token_id`, what a model that has one loses there."""
    if model.masked_token_id is None:
        return []
    return [
        f"{title} has no Model.masked_token_id: token {model.masked_token_id}, hidden from "
        "attention here, is attended to there, and texts with it get other logits"
    ]


class System(Protocol):
    """A family of checkpoints: how to know one, read one and write one.

    `activations` are those of `Model.hidden_act` that its programs compute.
    """

    name: str
    title: str
    activations: Collection[str]

    def recognise(self, path: Path) -> bool:
        """Whether `path`, a file or a folder, holds a checkpoint of this system, by its content.

        Cheap, and never raises for a file that is something else or damaged.
        """

    def open(self, path: Path) -> Opened:
        """Read the headers; raises `CheckpointError` for what is damaged, mixed up or missing."""

    def rules(self, model: ModelSection, names: Collection[str]) -> Sequence[Rule]:
        """Give the table of a model of these sizes.

        `names` are those of the file that is read, where a system has several ways of naming;
        empty when a checkpoint is written. Raises `UserError` where the system cannot express the
        model (a kind of feed-forward that it does not have).
        """

    def write(self, folder: Path, export: Export) -> None:
        """Write a checkpoint into an empty folder, one tensor in memory at a time.

        Raises `UserError` for a configuration that the system cannot express.
        """
