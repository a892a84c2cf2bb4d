"""JSON files that a stranger wrote: bounded, without repeated keys, one kind of error."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastffn_cli.errors import CheckpointError

LARGEST = 64 << 20  # bytes; an index of a hundred thousand tensors has a tenth of it


def read_object(file: Path) -> dict[str, Any]:
    """Read a JSON object. Raises `CheckpointError` naming the file for anything else."""
    try:
        if file.stat().st_size > LARGEST:
            raise CheckpointError(f"{file} has more than {LARGEST >> 20} MiB; it is not read")
        value = json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=_distinct)
    except RecursionError as error:
        raise CheckpointError(f"{file} cannot be read: nested too deeply") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file} is not a JSON object")
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice!r} is there twice")
    return value


def write_object(file: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object as transformers does: indented by two, a line break at the end."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    file.write_text(text, encoding="utf-8")
