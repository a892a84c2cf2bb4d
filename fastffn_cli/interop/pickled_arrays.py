"""NumPy's arrays in a pickle, taken as places in a file: stand-ins for what NumPy names there.

Forms (NumPy's `__reduce__` and `__reduce_ex__`, versions 1 and 2): an array is
`_reconstruct(ndarray, (0,), b"b")` with the state (version, shape, dtype, is_fortran, data), or in
protocol 5 `_frombuffer(data, dtype, shape, order)`; a dtype is `dtype("f4", False, True)` with its
byte order as state; a scalar is `scalar(dtype, data)`. Protocol 2 has no bytes: the data is Latin-1
text that `_codecs.encode` turns into them.
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fastffn_cli.engine.tensor_file import RawReader, StoredTensor
from fastffn_cli.errors import CheckpointError

CODES = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
MOST_DIMENSIONS = 32  # NumPy 1's limit
LARGEST_ARRAY = 1 << 62  # bytes, with empty dimensions counted as one
CHUNK_BYTES = 1 << 18  # of text that is turned into bytes


@dataclass(frozen=True)
class StoredBytes:
    """A byte string in a file, or with `utf8` the bytes whose Latin-1 text is stored as UTF-8."""

    file: Path
    place: int
    length: int
    utf8: bool


@dataclass(frozen=True)
class Latin1Text:
    """Bytes as protocol 2 has them: not encoded before they are read, because a pickle can ask for
    the same ones any number of times.
    """

    text: str


class Unbuilt:
    """An object whose state comes later in the pickle; `build` gives what it becomes."""

    def __init__(self, build: Callable[[Any], Any]) -> None:
        self.build = build
        self.memo_keys: list[int] = []


@dataclass(frozen=True)
class _DType:
    code: str
    big_endian: bool = False

    @property
    def bytes(self) -> int:
        return int(self.code[1:])

    @property
    def name(self) -> str:
        return np.dtype(self.code).name


class _UnbuiltDType(Unbuilt):
    def __init__(self, dtype: _DType) -> None:
        super().__init__(self._with_order)
        self.dtype = dtype

    def _with_order(self, state: Any) -> _DType:
        if not isinstance(state, tuple) or len(state) < 2:
            raise TypeError("no state of a dtype")
        order = _text(state[1])
        if order not in ("<", ">", "|", "="):
            raise ValueError(f"byte order {order!r}")
        return replace(self.dtype, big_endian=order == ">")


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        value = value.decode("latin1")
    if not isinstance(value, str):
        raise TypeError(f"a {type(value).__name__} instead of text")
    return value


def _dtype(code: Any, align: Any = False, copy: Any = True) -> _UnbuiltDType:
    name = _text(code)
    if name not in CODES:
        raise TypeError(f"an array of type {name[:40]!r}")
    return _UnbuiltDType(_DType(name))


def _ndarray(*arguments: Any) -> Any:
    raise TypeError("numpy.ndarray is not called")


def _reconstruct(kind: Any, shape: Any, code: Any) -> Unbuilt:
    return Unbuilt(_array_of_state)


def _array_of_state(state: Any) -> StoredTensor:
    if not isinstance(state, tuple) or len(state) != 5:
        raise TypeError("no state of an array")
    _, shape, dtype, is_fortran, data = state
    return _array(data, dtype, shape, fortran=bool(is_fortran))


def _frombuffer(data: Any, dtype: Any, shape: Any, order: Any) -> StoredTensor:
    if order not in ("C", "F"):
        raise ValueError("an array in neither C nor Fortran order")
    return _array(data, dtype, shape, fortran=order == "F")


def _scalar(dtype: Any, data: Any) -> Any:
    return _array(data, dtype, (), fortran=False).read().item()


def _encode(text: Any, encoding: Any = "latin1") -> Latin1Text | StoredBytes:
    if encoding not in ("latin1", "latin-1"):
        raise ValueError("text of another encoding than Latin-1")
    if isinstance(text, StoredBytes) and text.utf8:
        return text
    if isinstance(text, str):
        return Latin1Text(text)
    raise TypeError("no text to encode")


def _array(data: Any, dtype: Any, shape: Any, *, fortran: bool) -> StoredTensor:
    if isinstance(dtype, _UnbuiltDType):  # of one byte, or native: without a state of its own
        dtype = dtype.dtype
    if not isinstance(dtype, _DType):
        raise TypeError("an array without a type")
    shape = _checked_shape(shape, dtype)
    size = math.prod(shape) * dtype.bytes
    if isinstance(data, (bytes, str, Latin1Text)):
        if len(_bytes(data)) != size:
            raise ValueError(f"{len(_bytes(data))} bytes for an array of {size}")
        read = _memory_reader(data)
    elif isinstance(data, StoredBytes):
        # UTF-8 has one or two bytes for a byte of Latin-1; which, shows when it is read.
        if not (size <= data.length <= 2 * size if data.utf8 else data.length == size):
            raise ValueError(f"{data.length} bytes for an array of {size}")
        if not (data.utf8 or dtype.big_endian or fortran):
            plain = RawReader(data.file, data.place, shape, dtype.name)
            return StoredTensor(shape, dtype.name, plain)
        read = _text_reader(data, size) if data.utf8 else _reader(data)
    else:
        raise TypeError("an array without values")
    return StoredTensor(shape, dtype.name, lambda: _arranged(read(), dtype, shape, fortran))


def _bytes(data: bytes | str | Latin1Text) -> bytes:
    if isinstance(data, Latin1Text):
        data = data.text
    return data.encode("latin1") if isinstance(data, str) else data


def _memory_reader(data: bytes | str | Latin1Text) -> Callable[[], np.ndarray]:
    return lambda: np.frombuffer(_bytes(data), np.uint8)


def _checked_shape(shape: Any, dtype: _DType) -> tuple[int, ...]:
    if not isinstance(shape, tuple) or len(shape) > MOST_DIMENSIONS:
        raise TypeError("no shape of an array")
    if not all(type(length) is int and length >= 0 for length in shape):
        raise TypeError("no shape of an array")
    if math.prod(length or 1 for length in shape) * dtype.bytes > LARGEST_ARRAY:
        raise ValueError("an array beyond all measure")
    return shape


def _arranged(raw: np.ndarray, dtype: _DType, shape: tuple[int, ...], fortran: bool) -> np.ndarray:
    values = raw.view(np.dtype(dtype.code).newbyteorder(">" if dtype.big_endian else "<"))
    values = values.astype(values.dtype.newbyteorder("="), copy=not values.flags.writeable)
    return values.reshape(shape, order="F" if fortran else "C")


def _reader(data: StoredBytes) -> Callable[[], np.ndarray]:
    return RawReader(data.file, data.place, (data.length,), "uint8")


def _text_reader(data: StoredBytes, size: int) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        decoder = codecs.getincrementaldecoder("utf-8")()
        values = np.empty(size, np.uint8)
        filled, left = 0, data.length
        with data.file.open("rb") as opened:
            opened.seek(data.place)
            while left:
                chunk = opened.read(min(left, CHUNK_BYTES))
                left -= len(chunk)
                try:
                    part = decoder.decode(chunk, final=not left).encode("latin1")
                except UnicodeError as error:
                    raise CheckpointError(f"{data.file} is damaged: {error}") from error
                if not chunk or filled + len(part) > size:
                    break
                values[filled : filled + len(part)] = np.frombuffer(part, np.uint8)
                filled += len(part)
        if left or filled != size:
            raise CheckpointError(f"{data.file} is damaged: an array has not {size} bytes")
        return values

    return read


STAND_INS: dict[tuple[str, str], Callable[..., Any]] = {
    ("_codecs", "encode"): _encode,
    ("numpy", "ndarray"): _ndarray,
    ("numpy", "dtype"): _dtype,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _frombuffer,
    ("numpy._core.numeric", "_frombuffer"): _frombuffer,
}
