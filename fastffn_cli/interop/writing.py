"""From one of our checkpoints to another system's files, one tensor in memory at a time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fastffn_cli.config.schema import Config
from fastffn_cli.data.tokenizer import Tokenizer
from fastffn_cli.engine import storage
from fastffn_cli.engine.tensor_file import StoredTensor
from fastffn_cli.errors import UserError
from fastffn_cli.interop.layout import split_tensors
from fastffn_cli.interop.registry import find_system
from fastffn_cli.interop.system import Export


def write_foreign(
    final_dir: Path,
    system_name: str,
    *,
    config: Config,
    weights: Mapping[str, StoredTensor],
    step: int,
    tokenizer: Tokenizer | None,
) -> list[str]:
    """Write a checkpoint of another system into a new folder, atomically; return its notices.

    `weights` are ours by name, float32. Raises `UserError` where the system cannot express the
    model or the folder exists, `DiskFull` before or while writing; nothing is left behind then.
    """
    system = find_system(system_name)
    for name in ("attention_rank", "embedding_rank"):
        rank = getattr(config.Model, name)
        if rank is not None:
            raise UserError(
                f"{system.title} has whole matrices only, and Model.{name} is {rank} here",
                hint="Merge the factors first: add --to dense",
            )
    activation = config.Model.hidden_act
    if activation not in system.activations:
        raise UserError(
            f"{system.title} computes {' and '.join(system.activations)}, and Model.hidden_act is "
            f"{activation} here: there these weights would be another model's",
            hint="--format hf and --format mindformers carry it",
        )
    tensors = split_tensors(system.rules(config.Model, ()), weights)
    storage.check_room(final_dir, sum(tensor.nbytes for tensor in tensors.values()) + (1 << 20))
    with storage.new_folder(final_dir, manifest=False) as folder:
        export = Export(config=config, tensors=tensors, step=step, tokenizer=tokenizer)
        system.write(folder, export)
    return export.notices
