"""MindSpore's .ckpt files, read and written without MindSpore, one tensor in memory at a time.

The file is a protobuf message (`mindspore/ccsrc/utils/checkpoint.proto`) written piece by piece,
which is legal because repeated fields of concatenated messages add up:

    Checkpoint  {repeated Value value = 1}
    Value       {string tag = 1; oneof {TensorProto tensor = 2; MapTensorProto maptensor = 3}}
    TensorProto {repeated int64 dims = 1; string tensor_type = 2; bytes tensor_content = 3}

A tensor above 512 MiB is several Values of one tag, each with the dimensions of the whole, their
contents to be put together in order. Contents are little-endian, in C order. A scalar has no
dimensions, or [0] in MindSpore before 2.1.

The wire format is walked with seeks. The protobuf library wants a message in memory, and no message
above 2 GiB; checkpoints are larger than either.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fastffn_cli.engine.tensor_file import (
    CHUNK_VALUES,
    RawReader,
    StoredTensor,
    item_bytes,
    read_as_announced,
)
from fastffn_cli.errors import CheckpointError
from fastffn_cli.interop.protobuf_wire import (
    BYTES,
    VARINT,
    Damaged,
    WireReader,
    to_field,
    to_varint,
)

TYPES = {
    "Float16": "float16", "Float32": "float32", "Float64": "float64", "BFloat16": "bfloat16",
    "Int8": "int8", "Int16": "int16", "Int32": "int32", "Int64": "int64",
    "UInt8": "uint8", "UInt16": "uint16", "UInt32": "uint32", "UInt64": "uint64", "Bool": "bool",
}  # fmt: skip
NAMES = {dtype: name for name, dtype in TYPES.items()}
TEXT = "str"
SLICE_BYTES = 512 << 20

# The largest sizes of what is read into memory here.
LONGEST_TAG = 1024
LONGEST_TYPE = 32
MOST_DIMS = 16
MOST_ENTRIES = 100_000

CRC_MARK, CRC_BYTES = b"crc_num", 17
# First four bytes of each block of an encrypted file: AES-GCM, AES-CBC, SM4-CBC.
ENCRYPTED = {number.to_bytes(4, "little") for number in (0x7F3A5ED8, 0x7F3A5ED9, 0x7F3A5EDA)}
TAG = re.compile(r"[\w./:\-\[\]]+")
SHOWN = 10


@dataclass(frozen=True)
class Contents:
    """What a file holds: `tensors` in its order, and the names of entries that are text."""

    tensors: dict[str, StoredTensor]
    texts: tuple[str, ...]


@dataclass(frozen=True)
class _Slice:
    dims: tuple[int, ...]
    tensor_type: str
    place: int
    length: int


def looks_like_ckpt(file: Path) -> bool:
    """Whether a file begins as a checkpoint: the name of a tensor, then the tensor; or encrypted.

    Never raises; a file that is cut off or damaged further on looks like one.
    """
    try:
        if not file.is_file():  # a pipe would wait for ever
            return False
        with file.open("rb") as stream:
            if stream.read(4) in ENCRYPTED:
                return True
            stream.seek(0)
            wire = WireReader(stream, 1 << 62)
            if wire.field() != (1, BYTES):
                return False
            wire.varint()
            if wire.field() != (1, BYTES):
                return False
            tag = wire.text(LONGEST_TAG)
            return bool(TAG.fullmatch(tag)) and wire.field() in ((2, BYTES), (3, BYTES))
    except (OSError, Damaged):
        return False


def read_ckpt(file: Path) -> Contents:
    """Name the tensors of a file; their values are read when they are asked for.

    Raises `CheckpointError` naming the file, and the tensor, for what is encrypted, damaged,
    truncated, contradictory or of a type that NumPy does not have.
    """
    try:
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            _refuse_wrapped(file, stream, size)
            slices = _walk(file, WireReader(stream, size))
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from error
    tensors, texts, problems = {}, [], []
    for tag, parts in slices.items():
        if parts[0].tensor_type == TEXT:
            texts.append(tag)
            continue
        try:
            tensors[tag] = _put_together(file, tag, parts)
        except Damaged as error:
            problems.append(f"{tag} {error}")
    if problems:
        more = f"\n... {len(problems)} in all" if len(problems) > SHOWN else ""
        raise CheckpointError(f"{file} is damaged:\n" + "\n".join(problems[:SHOWN]) + more)
    return Contents(tensors, tuple(texts))


def write_ckpt(
    file: Path, tensors: Mapping[str, StoredTensor], *, slice_bytes: int = SLICE_BYTES
) -> None:
    """Write a file that `mindspore.load_checkpoint` reads; `OSError` of a full disk goes through.

    Tensors of more than `slice_bytes` are cut into slices between two values.
    """
    with file.open("wb") as stream:
        for tag, tensor in tensors.items():
            array = read_as_announced(tag, tensor)
            flat = array.reshape(-1)
            values = max(1, slice_bytes // array.itemsize)
            for start in range(0, max(1, flat.size), values):
                content = flat[start : start + values].view(np.uint8)
                stream.write(_slice_head(tag, tensor, content.size))
                stream.write(content.data)


def _slice_head(tag: str, tensor: StoredTensor, content_bytes: int) -> bytes:
    """Give everything of one Value before its content, which comes last."""
    head = b"".join(b"\x08" + to_varint(size) for size in tensor.shape)
    head += to_field(2, NAMES[tensor.dtype].encode()) + b"\x1a" + to_varint(content_bytes)
    value = to_field(1, tag.encode()) + b"\x12" + to_varint(len(head) + content_bytes) + head
    return b"\x0a" + to_varint(len(value) + content_bytes) + value


def _refuse_wrapped(file: Path, stream: BinaryIO, size: int) -> None:
    """Refuse files that are more than the message."""
    if not size:
        raise CheckpointError(f"{file} is an empty file")
    if stream.read(4) in ENCRYPTED:
        raise CheckpointError(
            f"{file} is encrypted: it was saved with enc_key",
            hint="Load it in MindSpore with dec_key, and save it again without enc_key",
        )
    stream.seek(max(0, size - CRC_BYTES))
    if stream.read(len(CRC_MARK)) == CRC_MARK:
        raise CheckpointError(
            f"{file} ends with a CRC trailer: it was saved with crc_check=True",
            hint="Load it in MindSpore, and save it again without crc_check",
        )
    stream.seek(0)


def _walk(file: Path, wire: WireReader) -> dict[str, list[_Slice]]:
    """Find the slices of each tag, in the order of the file."""
    slices: dict[str, list[_Slice]] = {}
    entries = 0
    while wire.place < wire.end:
        value = _ValueReader(wire)
        try:
            number, wire_type = wire.field()
            if (number, wire_type) != (1, BYTES):
                raise Damaged(f"has something else than a tensor behind it, field {number}")
            wire.inside(value.read_field)
            tag, part = value.finish()
        except Damaged as error:
            last = next(reversed(slices), None)
            where = value.tag or (f"what follows {last}" if last else "its first tensor")
            raise CheckpointError(f"{file} is truncated or damaged: {where} {error}") from error
        slices.setdefault(tag, []).append(part)
        entries += 1
        if entries > MOST_ENTRIES:
            raise CheckpointError(f"{file} has more than {MOST_ENTRIES:,} entries")
    return slices


class _ValueReader:
    """Reads the fields of one Value, of its tensor included, in whatever order they come."""

    def __init__(self, wire: WireReader) -> None:
        self.wire = wire
        self.tag = ""
        self.tensors = 0
        self.dims: list[int] = []
        self.tensor_type = ""
        self.content: tuple[int, int] | None = None

    def read_field(self) -> None:
        field = self.wire.field()
        if field == (1, BYTES):
            tag = self.wire.text(LONGEST_TAG)
            if not tag.isprintable():
                raise Damaged(f"has an unprintable name, before byte {self.wire.place:,}")
            self.tag = tag
        elif field == (2, BYTES):
            self.tensors += 1
            self.wire.inside(self._read_tensor_field)
        elif field == (3, BYTES):
            raise Damaged("is a map tensor (a hash table of embeddings), which is not read")
        else:
            self.wire.skip(field[1])

    def _read_tensor_field(self) -> None:
        field = self.wire.field()
        if field == (1, VARINT):
            self._add_dim()
        elif field == (1, BYTES):  # packed
            self.wire.inside(self._add_dim)
        elif field == (2, BYTES):
            self.tensor_type = self.wire.text(LONGEST_TYPE)
        elif field == (3, BYTES):
            length = self.wire.length()
            self.content = (self.wire.place, length)
            self.wire.step(length)
        else:
            self.wire.skip(field[1])

    def _add_dim(self) -> None:
        self.dims.append(self.wire.varint())
        if len(self.dims) > MOST_DIMS:
            raise Damaged(f"has more than {MOST_DIMS} dimensions")
        if self.dims[-1] >= 1 << 63:
            raise Damaged("has a negative dimension")

    def finish(self) -> tuple[str, _Slice]:
        if not self.tag:
            raise Damaged(f"has no name, before byte {self.wire.place:,}")
        if self.tensors != 1 or not self.tensor_type or self.content is None:
            raise Damaged(f"has no complete tensor, before byte {self.wire.place:,}")
        return self.tag, _Slice(tuple(self.dims), self.tensor_type, *self.content)


def _put_together(file: Path, tag: str, parts: list[_Slice]) -> StoredTensor:
    """Make one tensor of its slices; `Damaged` where they do not make one."""
    first = parts[0]
    if first.tensor_type not in TYPES:
        raise Damaged(f"is of type {first.tensor_type!r}, which is not read")
    for part in parts:
        if (part.dims, part.tensor_type) != (first.dims, first.tensor_type):
            raise Damaged(
                f"is there twice: as {first.tensor_type} {list(first.dims)} and as "
                f"{part.tensor_type} {list(part.dims)}"
            )
    dtype = TYPES[first.tensor_type]
    shape, found = first.dims, sum(part.length for part in parts)
    if shape == (0,) and found:
        shape = ()
    expected = math.prod(shape) * item_bytes(dtype)
    if found != expected:
        pieces = f" in {len(parts)} pieces" if len(parts) > 1 else ""
        raise Damaged(
            f"has {found:,} bytes{pieces}, {first.tensor_type} {list(shape)} takes {expected:,}"
        )
    if len(parts) == 1:
        return StoredTensor(shape, dtype, RawReader(file, first.place, shape, dtype))
    if any(part.length % item_bytes(dtype) for part in parts):
        raise Damaged("is cut in the middle of a value")
    return StoredTensor(shape, dtype, _slices_reader(file, parts, shape, dtype))


def _slices_reader(
    file: Path, parts: list[_Slice], shape: tuple[int, ...], dtype: str
) -> Callable[[], np.ndarray]:
    """Return a reader that fills one array from all slices, without a second copy of any."""

    def read() -> np.ndarray:
        array = np.empty(shape, "float32" if dtype == "bfloat16" else dtype)
        flat, start = array.reshape(-1), 0
        for part in parts:
            left, place = part.length // item_bytes(dtype), part.place
            while left:
                count = min(left, CHUNK_VALUES)
                flat[start : start + count] = RawReader(file, place, (count,), dtype)()
                start, left = start + count, left - count
                place += count * item_bytes(dtype)
        return array

    return read
