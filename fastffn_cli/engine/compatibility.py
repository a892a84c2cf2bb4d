"""Whether a checkpoint can be continued, or started from, under a configuration."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fastffn_cli.config.ffn import TRAINING_OPTIONS
from fastffn_cli.config.schema import Config
from fastffn_cli.engine.checkpoint import Checkpoint
from fastffn_cli.engine.tensor_file import StoredTensor, stored
from fastffn_cli.errors import CheckpointError
from models.gpt import GPTConfig

# Keys whose change would make "the same run, continued" untrue.
FIXED = (
    "Global.seed",
    "Model.vocab_size",
    "Model.hidden_size",
    "Model.num_layers",
    "Model.num_attention_heads",
    "Model.ffn_hidden_size",
    "Model.max_position_embeddings",
    "Model.masked_token_id",
    "Model.hidden_act",
    "Model.attention_rank",
    "Model.embedding_rank",
    "Model.ffn",
    "Data.dataset.split",
    "Data.dataset.max_seq_len",
    "Data.dataset.eos_id",
    "Optimizer.name",
    "Optimizer.bias_correction",
)
# Sections that differ between a run and its checkpoints of a dense stage.
PLANNED = ("Model", "Schedule")
# Keys that do not change what is computed.
FREE = (
    "Global.device",
    "Global.cpu_threads",
    "Global.cpu_fast_math",
    "Global.cpu_kernels",
    "Fused",
    "Engine",
    "Data.dataset",
    "notes",
)
# What the weights to start from must share; heads and activation show in no shape.
SIZES = (
    "vocab_size",
    "hidden_size",
    "num_layers",
    "num_attention_heads",
    "ffn_hidden_size",
    "hidden_act",
    "attention_rank",
    "embedding_rank",
)
POSITIONS = "position_embeddings.weight"


def planned_config(checkpoint: Checkpoint) -> Config:
    """Return the configuration of the run that wrote a checkpoint, whatever stage that is in."""
    planned = checkpoint.trainer.get("stages", {}).get("planned")
    if planned is None:
        return checkpoint.config
    sections = {
        name: type(getattr(checkpoint.config, name)).model_validate(planned[name])
        for name in PLANNED
    }
    return checkpoint.config.model_copy(update=sections)


def check_resume(
    checkpoint: Checkpoint, config: Config, num_tokens: int, notices: list[str]
) -> None:
    """Raise `CheckpointError` if the run cannot be continued exactly; note other changed keys."""
    before, now = (_flatten(item.model_dump()) for item in (planned_config(checkpoint), config))
    changed = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    broken = [key for key in changed if _under(key, FIXED)]
    problems = [f"{key} was {before.get(key)}, is {now.get(key)}" for key in broken]
    trained_on = checkpoint.trainer.get("data", {}).get("num_tokens")
    if trained_on is not None and trained_on != num_tokens and not problems:
        problems.append(f"the training part had {trained_on:,} tokens, now it has {num_tokens:,}")
    if problems:
        raise CheckpointError(
            f"{checkpoint.path} cannot be continued with this configuration:\n"
            + "\n".join(problems),
            hint="Use the run's own settings (its config.yaml), or start a new run from these "
            f"weights with -o Engine.save_load.ckpt_dir={checkpoint.path}",
        )
    for key in changed:
        if not _under(key, FREE) or key == "Engine.max_steps":
            notices.append(
                f"{key} changed since the checkpoint: {before.get(key)} -> {now.get(key)}"
            )


def check_start(checkpoint: Checkpoint, config: Config, notices: list[str]) -> None:
    """Raise `CheckpointError` if a new run of `config` cannot begin with these weights.

    Sizes and ranks must agree, the position table must be long enough, the feed-forwards of one
    kind. A change of what attention sees is noted.
    """
    had, wanted = checkpoint.config.Model, config.Model
    if had.masked_token_id != wanted.masked_token_id:
        before, now = (_shown(part.masked_token_id) for part in (had, wanted))
        notices.append(
            f"Model.masked_token_id is {before} in {checkpoint.path} and {now} here: attention "
            "will see other tokens than these weights are used to"
        )
    convert = f"fastffn convert {shlex.quote(str(checkpoint.path))}"
    merge = f"Merge it first: {convert}"
    if had.ffn.kind != wanted.ffn.kind:
        raise CheckpointError(
            f"{checkpoint.path} has feed-forward layers of kind '{had.ffn.kind}', "
            f"Model.ffn asks for '{wanted.ffn.kind}'",
            hint=merge
            if wanted.ffn.kind == "dense"
            else f"Factor it first: {convert} --to {wanted.ffn.kind}",
        )
    sizes = [(f"Model.{key}", getattr(had, key), getattr(wanted, key)) for key in SIZES]
    options = [part.ffn.model_dump() for part in (had, wanted)]
    sizes += [
        (f"Model.ffn.{name}", options[0][name], options[1][name])
        for name in options[0]
        if name not in TRAINING_OPTIONS
    ]
    problems = [
        f"{key} is {_shown(old)} there, {_shown(new)} here" for key, old, new in sizes if old != new
    ]
    if problems:
        raise CheckpointError(
            f"{checkpoint.path} does not fit this configuration:\n" + "\n".join(problems),
            hint=merge
            if wanted.is_dense and not had.is_dense
            else "Take these values from its config.yaml",
        )
    _check_positions(had.max_position_embeddings, wanted.max_position_embeddings, checkpoint.path)


def fit_positions(
    tensors: Mapping[str, np.ndarray | StoredTensor], model: GPTConfig, origin: Path
) -> dict[str, np.ndarray | StoredTensor]:
    """Return the tensors with the position table cut to the model's length.

    Rows beyond `max_position_embeddings` are never used, so cutting is exact for shorter sequences
    (the original FastFFN's 1024 -> 1023). Raises `CheckpointError` when rows are missing.
    """
    fitted = dict(tensors)
    table = fitted.get(POSITIONS)
    if table is None or table.shape[0] == model.max_position_embeddings:
        return fitted
    _check_positions(table.shape[0], model.max_position_embeddings, origin)
    fitted[POSITIONS] = stored(table).read()[: model.max_position_embeddings]
    return fitted


def _check_positions(there: int, wanted: int, origin: Path) -> None:
    if there < wanted:
        raise CheckpointError(
            f"{origin} has {there} positions, Model.max_position_embeddings asks for {wanted}",
            hint=f"Type: -o Model.max_position_embeddings={there} "
            f"(and Data.dataset.max_seq_len no larger)",
        )


def _shown(value: object) -> object:
    return "blank" if value is None else value


def _flatten(value: object, prefix: str = "") -> dict[str, object]:
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    flat: dict[str, object] = {}
    for key, inner in value.items():
        flat.update(_flatten(inner, f"{prefix}.{key}" if prefix else str(key)))
    return flat


def _under(key: str, roots: tuple[str, ...]) -> bool:
    return any(key == root or key.startswith(f"{root}.") for root in roots)
