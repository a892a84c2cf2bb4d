"""What another system's files hold: a checkpoint by its headers, a MindRecord by its rows."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from fastffn_cli.config.ffn import DENSE
from fastffn_cli.engine.tensor_file import describe_tensors
from fastffn_cli.interop.mindrecord import open_mindrecord
from fastffn_cli.interop.registry import open_foreign

SHOWN_IDS = 32
SIZES = ("num_layers", "hidden_size", "num_attention_heads", "ffn_hidden_size", "vocab_size")


def describe_foreign(path: Path) -> dict[str, Any]:
    """Describe a checkpoint as plain JSON values.

    Keys: kind, system, title, path, step, model (sizes, None where the files do not tell), ffn,
    parameters, dtypes (tensors by type), tensors (name, shape, dtype, as the system names them),
    ignored (how many entries are no weights), tokenizer (name or None), notices. Raises
    `CheckpointError` for a file that is damaged or something else.
    """
    system, opened = open_foreign(path)
    tokenizer = opened.tokenizer()
    return {
        "kind": "foreign checkpoint",
        "system": system.name,
        "title": opened.title,
        "path": str(path),
        "step": opened.step,
        "model": {name: opened.model.get(name) for name in SIZES},
        "ffn": opened.model.get("ffn", DENSE["ffn"]),
        "parameters": sum(tensor.size for tensor in opened.tensors.values()),
        "dtypes": dict(Counter(tensor.dtype for tensor in opened.tensors.values())),
        "tensors": describe_tensors(opened.tensors),
        "ignored": len(opened.ignored),
        "tokenizer": tokenizer.name if tokenizer else None,
        "notices": list(opened.notices),
    }


def describe_mindrecord(path: Path) -> dict[str, Any]:
    """Describe a MindRecord as plain JSON values.

    Keys: kind, path, column (the one that is read), rows, tokens, shortest, longest (ids of a row),
    largest_id, bytes, first (the ids of the first row). Every row is read. Raises `DataError` for a
    file that is damaged or misses its index.
    """
    record = open_mindrecord(path)
    rows = tokens = longest = 0
    shortest, largest, first = None, -1, None
    for row in record.rows():
        rows, tokens, longest = rows + 1, tokens + row.size, max(longest, row.size)
        shortest = row.size if shortest is None else min(shortest, row.size)
        largest = max(largest, int(row.max(initial=-1)))
        first = row if first is None else first
    return {
        "kind": "MindRecord",
        "path": str(path),
        "column": record.column,
        "rows": rows,
        "tokens": tokens,
        "shortest": shortest,
        "longest": longest,
        "largest_id": largest,
        "bytes": path.stat().st_size,
        "first": [] if first is None else [int(token) for token in first[:SHOWN_IDS]],
    }
