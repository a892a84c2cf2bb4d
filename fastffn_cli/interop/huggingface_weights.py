"""The weight files of a Hugging Face model: one file or shards, safetensors or PyTorch's.

Names and rules: transformers 4.57 `modeling_utils.py`, huggingface_hub `serialization/_torch.py`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastffn_cli.engine.tensor_file import (
    StoredTensor,
    open_safetensors,
    write_safetensors,
)
from fastffn_cli.errors import CheckpointError
from fastffn_cli.interop.json_file import read_object
from fastffn_cli.interop.sniff import seems_to_be
from fastffn_cli.interop.torch_file import is_torch_file, open_torch

SAFETENSORS = "model.safetensors"
TORCH = "pytorch_model.bin"
INDEX = ".index.json"
# In the order in which transformers looks for them.
WEIGHTS = (SAFETENSORS, SAFETENSORS + INDEX, TORCH, TORCH + INDEX)
SHARD = re.compile(r"-\d{5}-of-(?!00001)\d{5}\.")
SHARD_BYTES = 5_000_000_000
SHOWN = 10  # problems of an index; a wrong index has one a tensor


@dataclass(frozen=True)
class Weights:
    """Tensors by their names, the files that they lie in, and what to say about the choice."""

    tensors: Mapping[str, StoredTensor]
    files: tuple[Path, ...]
    notices: tuple[str, ...] = ()


def find_weights(path: Path) -> Path | None:
    """Give the weights file or index of a folder, or the file itself; None if there is none."""
    if not path.is_dir():
        return path
    return next((path / name for name in WEIGHTS if (path / name).is_file()), None)


def open_weights(path: Path) -> Weights:
    """Open what `path`, a folder, a weights file or an index of shards, holds.

    Raises `CheckpointError` when there are no weights, a shard is missing, damaged or escapes the
    folder, or the index and the shards disagree.
    """
    file = find_weights(path)
    if file is None:
        others = sorted(each.name for each in path.glob("*.h5")) + sorted(
            each.name for each in path.glob("*.msgpack")
        )
        there = f" ({', '.join(others)} of TensorFlow or Flax is not read)" if others else ""
        raise CheckpointError(
            f"{path} has no weights{there}", hint=f"It needs one of {', '.join(WEIGHTS)}"
        )
    if SHARD.search(file.name):
        raise CheckpointError(
            f"{file} is one of several shards, which are read together",
            hint=f"Give their folder: {file.parent}",
        )
    notices: list[str] = []
    tensors: Mapping[str, StoredTensor]
    if path.is_dir():
        left = [name for name in WEIGHTS if name != file.name and (path / name).is_file()]
        if left:
            notices.append(f"{path}: {file.name} is read; {', '.join(left)} is there as well")
    if file.name.endswith(INDEX):
        tensors, files = _open_shards(file)
    else:
        tensors, files = open_tensors(file), (file,)
    return Weights(tensors, files, tuple(notices))


def open_tensors(file: Path) -> Mapping[str, StoredTensor]:
    """Name the tensors of one file, safetensors or PyTorch's, by its content."""
    if not file.is_file():
        raise CheckpointError(f"{file} does not exist or is no file")
    if is_torch_file(file):
        return open_torch(file)
    if looks_like_safetensors(file):
        return open_safetensors(file)
    raise CheckpointError(f"{file} holds no weights: it is {seems_to_be(file)}")


def looks_like_safetensors(file: Path) -> bool:
    """Whether a file begins as safetensors: the length of a JSON object, then the object."""
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            head = opened.read(9)
    except OSError:
        return False
    return len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") + 8 <= size


def _open_shards(index_file: Path) -> tuple[dict[str, StoredTensor], tuple[Path, ...]]:
    places = _read_index(index_file)
    folder, problems = index_file.parent, []
    counts = Counter(places.values())
    names = sorted(counts)
    for name in names:
        if not (folder / name).is_file():
            problems.append(f"shard {name} is missing ({counts[name]} tensors)")
    _raise_all(index_file, problems)
    tensors: dict[str, StoredTensor] = {}
    for name in names:
        shard = open_tensors(folder / name)
        for tensor in shard:
            if tensor not in places:
                problems.append(f"{name} holds {tensor}, which the index does not name")
            elif places[tensor] != name:
                problems.append(f"{name} holds {tensor}, the index says {places[tensor]}")
        problems += [
            f"{name} has no {tensor}, the index says it has"
            for tensor, place in places.items()
            if place == name and tensor not in shard
        ]
        tensors.update(shard)
    _raise_all(index_file, problems)
    return tensors, tuple(folder / name for name in names)


def _read_index(index_file: Path) -> dict[str, str]:
    """Give the shard of each tensor; only plain names of files in the same folder are allowed."""
    places = read_object(index_file).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{index_file} has no weight_map, or an empty one")
    strange = sorted({repr(name) for name in places.values() if not _is_plain(name)})
    _raise_all(index_file, [f"{name} is no name of a file in this folder" for name in strange])
    return places


def _is_plain(name: Any) -> bool:
    """Whether a value is the name of a file and no path, on whatever system."""
    if not isinstance(name, str) or not name.isprintable():
        return False
    return bool(re.fullmatch(r"[^/\\:]{1,200}", name)) and name[0] != "."


def _raise_all(file: Path, problems: list[str]) -> None:
    if problems:
        more = f"\n... {len(problems)} in all" if len(problems) > SHOWN else ""
        raise CheckpointError(
            f"{file} does not fit the files beside it:\n" + "\n".join(problems[:SHOWN]) + more
        )


def write_weights(
    folder: Path, tensors: Mapping[str, StoredTensor], shard_bytes: int = SHARD_BYTES
) -> None:
    """Write model.safetensors, or shards of at most `shard_bytes` and their index.

    As `save_pretrained`: shards are filled in the order of the tensors, a tensor is never cut.
    """
    shards = _fill_shards(tensors, shard_bytes)
    if len(shards) == 1:
        write_safetensors(folder / SAFETENSORS, tensors, {"format": "pt"})
        return
    places = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(folder / file, {name: tensors[name] for name in names}, {"format": "pt"})
        places.update(dict.fromkeys(names, file))
    index = {
        "metadata": {
            "total_parameters": sum(tensor.size for tensor in tensors.values()),
            "total_size": sum(tensor.nbytes for tensor in tensors.values()),
        },
        "weight_map": dict(sorted(places.items())),
    }
    text = json.dumps(index, indent=2) + "\n"
    (folder / (SAFETENSORS + INDEX)).write_text(text, encoding="utf-8")


def _fill_shards(tensors: Mapping[str, StoredTensor], shard_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for name, tensor in tensors.items():
        if shards[-1] and filled + tensor.nbytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += tensor.nbytes
    return shards


def names_of(file: Path) -> Collection[str]:
    """Give the names of the tensors that a weights file or an index of shards speaks of."""
    return _read_index(file) if file.name.endswith(INDEX) else open_tensors(file)
