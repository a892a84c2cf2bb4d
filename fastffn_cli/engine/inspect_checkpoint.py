"""What a checkpoint holds, read from the headers of its files: no paddle, no weights in memory."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from fastffn_cli.config.load import parse_config_file
from fastffn_cli.engine.checkpoint import OPTIMIZER_FILE, read_checkpoint
from fastffn_cli.engine.storage import MANIFEST
from fastffn_cli.engine.tensor_file import describe_tensors, open_safetensors

LAYER_NAME = re.compile(r"layers\.(\d+)\.ffn\.(.+)")
# A factored layer: `left` is [in, rank], and the rank is what the tensors say, not the YAML.
LEFT_FACTOR = re.compile(r"linear\d\.left")


def describe_checkpoint(path: Path) -> dict[str, Any]:
    """Describe a checkpoint as plain JSON values, after verifying every file's sha256.

    Keys: kind, path, stage, step, planned_steps, tokens, loss, model, ffn, attention_rank,
    embedding_rank, layers (layer, kind, ranks, parameters of its feed-forward), parameters, tensors
    (name, shape, dtype), optimizer (its tensor count), tokenizer (name or None), files (bytes by
    name), verified. Raises `CheckpointError` naming the file that is missing, short or altered.
    """
    checkpoint = read_checkpoint(path)
    tensors = describe_tensors(checkpoint.weights())
    trainer, model = checkpoint.trainer, parse_config_file(path / "config.yaml").Model
    tokenizer = checkpoint.tokenizer()
    optimizer_file = path / OPTIMIZER_FILE
    sizes = ("num_layers", "hidden_size", "num_attention_heads", "ffn_hidden_size", "vocab_size")
    return {
        "kind": "checkpoint",
        "path": str(path),
        "stage": trainer.get("stage"),
        "step": checkpoint.step,
        "planned_steps": trainer.get("planned_steps"),
        "tokens": trainer.get("tokens"),
        "loss": trainer.get("loss"),
        "model": {name: getattr(model, name) for name in sizes},
        **model.approximations,
        "layers": _layers(tensors, checkpoint.ffn_kind),
        "parameters": sum(math.prod(tensor["shape"]) for tensor in tensors),
        "tensors": tensors,
        "optimizer": len(open_safetensors(optimizer_file)) if optimizer_file.exists() else 0,
        "tokenizer": tokenizer.name if tokenizer else None,
        "files": {file.name: file.stat().st_size for file in sorted(path.iterdir())},
        "verified": f"sizes and sha256 of {MANIFEST}",
    }


def _layers(tensors: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    layers: dict[int, dict[str, Any]] = {}
    for tensor in tensors:
        match = LAYER_NAME.fullmatch(tensor["name"])
        if match is None:
            continue
        number = int(match[1])
        layer = layers.setdefault(
            number, {"layer": number, "kind": kind, "ranks": [], "parameters": 0}
        )
        layer["parameters"] += math.prod(tensor["shape"])
        if LEFT_FACTOR.fullmatch(match[2]):
            layer["ranks"].append(tensor["shape"][-1])
    return [layers[number] for number in sorted(layers)]
