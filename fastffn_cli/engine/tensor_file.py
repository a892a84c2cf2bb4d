"""Tensors that lie in files: named and measured at once, read one at a time.

A checkpoint can be larger than the memory. What goes through here is read, and written, tensor by
tensor; the largest one decides how much memory that takes. The format is safetensors. The library
checks a file and its header; the values are read by their place in it, because mapped pages would
count as memory, and written one after the other, because `save_file` wants them all at once.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from fastffn_cli.errors import CheckpointError

DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
CODES = {name: code for code, name in DTYPES.items()}
CHUNK_VALUES = 1 << 22  # of a tensor that changes its type while it is read


@dataclass(frozen=True)
class StoredTensor:
    """A tensor whose shape and type are known and whose values are read when asked for.

    `dtype` is numpy's name, or `bfloat16`. `read` gives the array, bfloat16 as float32 (exact).
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the values as they are stored."""
        return self.size * item_bytes(self.dtype)

    def view(self) -> np.ndarray:
        """The array, to be read only: mapped from its file where that needs no change of type."""
        return self.read.map() if isinstance(self.read, RawReader) else self.read()

    def as_float32(self) -> StoredTensor:
        """The same tensor, read as float32: exact for the half precision types."""
        if self.dtype == "float32":
            return self
        if isinstance(self.read, RawReader):
            return StoredTensor(self.shape, "float32", replace(self.read, result="float32"))
        return StoredTensor(
            self.shape, "float32", lambda: self.read().astype(np.float32, copy=False)
        )


def stored(tensor: np.ndarray | StoredTensor) -> StoredTensor:
    """Give an array in memory the form of one in a file."""
    if isinstance(tensor, StoredTensor):
        return tensor
    return StoredTensor(tuple(tensor.shape), tensor.dtype.name, lambda: tensor)


def item_bytes(dtype: str) -> int:
    """Bytes of one value of a type."""
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize


def open_safetensors(file: Path) -> dict[str, StoredTensor]:
    """Name the tensors of a safetensors file.

    Raises `CheckpointError` naming the file when it is truncated, damaged or something else.
    """
    try:
        with safe_open(file, framework="numpy"):  # the library refuses what is not whole
            pass
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header: dict[str, Any] = json.loads(opened.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{file} cannot be read: it is truncated, damaged or no safetensors file ({error})"
        ) from error
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        if entry["dtype"] not in DTYPES:
            raise CheckpointError(f"{file}: {name} is of type {entry['dtype']}, which is not read")
        place = 8 + length + entry["data_offsets"][0]
        shape, dtype = tuple(entry["shape"]), DTYPES[entry["dtype"]]
        tensors[name] = StoredTensor(shape, dtype, RawReader(file, place, shape, dtype))
    return tensors


@dataclass(frozen=True)
class RawReader:
    """Reads little-endian values in C order that start at byte `place` of a file.

    They come as `result`, or as they are stored; another type is made chunk by chunk, so that
    nothing but the result takes memory.
    """

    file: Path
    place: int
    shape: tuple[int, ...]
    dtype: str
    result: str | None = None

    @property
    def _stored_type(self) -> np.dtype:
        return np.dtype("<u2" if self.dtype == "bfloat16" else self.dtype).newbyteorder("<")

    @property
    def _result_type(self) -> np.dtype:
        return np.dtype(self.result or ("float32" if self.dtype == "bfloat16" else self.dtype))

    def map(self) -> np.ndarray:
        """Return the array, mapped, which spares a copy; or read, where its type is to change.

        It must not outlive the file. Raises `CheckpointError` where the file ends before it.
        """
        if self._stored_type != self._result_type or not math.prod(self.shape):
            return self()
        try:
            return np.memmap(self.file, self._stored_type, "r", self.place, self.shape)
        except ValueError as error:
            raise CheckpointError(f"{self.file} ends before its last tensor") from error

    def __call__(self) -> np.ndarray:
        """Return the array; raises `CheckpointError` where the file ends before it."""
        stored_type, result = self._stored_type, self._result_type
        with self.file.open("rb") as opened:
            opened.seek(self.place)
            array = np.empty(self.shape, result)
            flat = array.reshape(-1)
            if flat.dtype == stored_type:
                _fill(opened, flat.view(np.uint8))
                return array
            for start in range(0, flat.size, CHUNK_VALUES):
                chunk = np.empty(min(CHUNK_VALUES, flat.size - start), stored_type)
                _fill(opened, chunk.view(np.uint8))
                values = widen_bfloat16(chunk) if self.dtype == "bfloat16" else chunk
                flat[start : start + chunk.size] = values
        return array


def widen_bfloat16(bits: np.ndarray) -> np.ndarray:
    """Give uint16 bit patterns of bfloat16 as the same float32 values."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _fill(opened: Any, target: np.ndarray) -> None:
    if target.size and opened.readinto(target.data) != target.size:
        raise CheckpointError(f"{opened.name} ends before its last tensor")


def write_safetensors(
    file: Path,
    tensors: Mapping[str, StoredTensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a safetensors file, one tensor in memory at a time; byte for byte the library's.

    `OSError` of a full disk goes through.
    """
    order = sorted(tensors, key=lambda name: (-item_bytes(tensors[name].dtype), name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in order:
        tensor = tensors[name]
        start, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        for chunk in _values(tensors, order):
            opened.write(chunk)


def _values(tensors: Mapping[str, StoredTensor], order: list[str]) -> Iterator[memoryview]:
    for name in order:
        array = read_as_announced(name, tensors[name])
        if array.size:
            yield array.reshape(-1).data.cast("B")


def read_as_announced(name: str, tensor: StoredTensor) -> np.ndarray:
    """Read a tensor to be written: little-endian, C order, of the shape and type it said."""
    array = np.asarray(tensor.read(), order="C")
    if array.shape != tensor.shape or array.dtype.name != tensor.dtype:
        raise ValueError(
            f"{name} was announced as {tensor.dtype} {tensor.shape} and is "
            f"{array.dtype.name} {array.shape}"
        )
    return array.byteswap() if sys.byteorder == "big" else array


def describe_tensors(tensors: Mapping[str, StoredTensor]) -> list[dict[str, Any]]:
    """Return name, shape and dtype of every tensor, as plain JSON values; layer 9 before 10."""
    return [
        {"name": name, "shape": list(tensors[name].shape), "dtype": tensors[name].dtype}
        for name in sorted(tensors, key=_natural)
    ]


def _natural(name: str) -> list[tuple[int, str]]:
    return [
        (int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)
    ]
