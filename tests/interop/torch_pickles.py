"""Files as `torch.save` writes them, assembled by hand: what they say can be a lie."""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAGIC = 0x1950A86A20F9469CFC6C


@dataclass(frozen=True)
class Name:
    """An importable name."""

    module: str
    name: str


@dataclass(frozen=True)
class Call:
    """A name, called while the pickle is loaded."""

    called: Name
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Persistent:
    """A persistent id."""

    value: Any


def assemble(value: Any) -> bytes:
    """Give the pickle, protocol 2, of a value made of the classes above and plain Python."""
    return b"\x80\x02" + _operations(value) + b"."


def _operations(value: Any) -> bytes:
    if isinstance(value, Name):
        return f"c{value.module}\n{value.name}\n".encode()
    if isinstance(value, Call):
        return _operations(value.called) + _operations(value.arguments) + b"R"
    if isinstance(value, Persistent):
        return _operations(value.value) + b"Q"
    if isinstance(value, tuple):
        return b"(" + b"".join(map(_operations, value)) + b"t"
    if isinstance(value, dict):
        items = (_operations(each) for pair in value.items() for each in pair)
        return b"}(" + b"".join(items) + b"u"
    if isinstance(value, str):
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
    return pickle.dumps(value, protocol=2)[2:-1]


def storage(count: Any = 6, *, kind: str = "FloatStorage", key: Any = "0") -> Persistent:
    """A storage of `count` values, as a zip archive names it."""
    return Persistent(("storage", Name("torch", kind), key, "cpu", count))


def tensor(values: Any = None, offset: Any = 0, shape: Any = (2, 3), strides: Any = (3, 1)) -> Call:
    """A tensor in a storage."""
    hooks = Call(Name("collections", "OrderedDict"), ())
    return Call(
        Name("torch._utils", "_rebuild_tensor_v2"),
        (storage() if values is None else values, offset, shape, strides, False, hooks),
    )


def write_zip(
    file: Path, content: Any, storages: Mapping[str, bytes], *, byteorder: str = "little"
) -> Path:
    """Write the container of torch 1.6 and later."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("model/data.pkl", assemble(content))
        archive.writestr("model/byteorder", byteorder)
        for key, data in storages.items():
            archive.writestr(f"model/data/{key}", data)
    return file


def write_legacy(
    file: Path,
    content: Any,
    storages: Mapping[str, bytes],
    *,
    counts: Mapping[str, int] | None = None,
    little_endian: bool = True,
) -> Path:
    """Write the container before torch 1.6; `counts` are the lengths of the storages in values."""
    system = {"protocol_version": 1001, "little_endian": little_endian, "type_sizes": {}}
    parts = [pickle.dumps(MAGIC, 2), pickle.dumps(1001, 2), pickle.dumps(system, 2)]
    parts += [assemble(content), pickle.dumps(list(storages), 2)]
    for key, data in storages.items():
        parts += [struct.pack("<q", (counts or {}).get(key, len(data) // 4)), data]
    file.write_bytes(b"".join(parts))
    return file
