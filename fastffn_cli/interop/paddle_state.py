"""What `paddle.save` writes of a `state_dict`, read and written without paddle, running nothing.

Forms (Paddle 2.0 to 3.3, `framework/io.py`): name -> array, with the names of the variables under
`StructuredToParameterName@@`; name -> (variable, array), where the array was a tensor inside a
nested object; an array as `eval("data", {"data": array})`, which is taken as that array and as
nothing else; arrays beyond 1 GiB in pieces, listed under `UnpackBigParamInfor@@`, in protocols
below 4. bfloat16 is stored as uint16: Paddle itself takes every uint16 for it.
"""

from __future__ import annotations

import math
import pickle
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fastffn_cli.engine.tensor_file import StoredTensor, read_as_announced
from fastffn_cli.errors import CheckpointError
from fastffn_cli.interop.pickled import Refused, read_pickle

NAME_TABLE = "StructuredToParameterName@@"
PIECE_TABLE = "UnpackBigParamInfor@@"  # typos: ignore, Paddle's spelling
WRAPPED = "_layers."  # what Paddle's wrappers, such as PipelineParallel, call the model in them
PROTOCOL = 4  # Paddle's default; the first one without a limit of 4 GiB


@dataclass(frozen=True)
class StateDict:
    """Tensors by name, in the order of the file, and the names of entries that are none."""

    tensors: dict[str, StoredTensor]
    others: list[str]


def open_state_dict(file: Path) -> StateDict:
    """Name the tensors of a file of `paddle.save`; none is read.

    Raises `CheckpointError` naming the file for anything but a dictionary, and for all that
    `pickled` refuses.
    """
    content = read_pickle(file, allowed=PADDLE_NAMES)
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{file} holds a {type(content).__name__}, not a dictionary of tensors"
        )
    tensors: dict[str, StoredTensor] = {}
    others = []
    for name, value in content.items():
        if isinstance(name, str) and not name.isprintable():
            raise CheckpointError(f"{file} is damaged: a tensor is called {ascii(name)[:80]}")
        tensor = _tensor(value)
        if tensor is not None and isinstance(name, str):
            tensors[name] = tensor
        elif name not in (NAME_TABLE, PIECE_TABLE):
            others.append(str(name)[:100])
    _join_pieces(file, tensors, content.get(PIECE_TABLE, {}))
    while tensors and all(name.startswith(WRAPPED) for name in tensors):
        tensors = {name.removeprefix(WRAPPED): tensor for name, tensor in tensors.items()}
    return StateDict({name: _widened(tensor) for name, tensor in tensors.items()}, others)


def _tensor(value: Any) -> StoredTensor | None:
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str):
        value = value[1]
    return value if isinstance(value, StoredTensor) else None


def _take_array(code: Any, names: Any = None, *more: Any) -> Any:
    """Stand in for `eval`, as `paddle.save` uses it for a tensor of a static graph."""
    if code != "data" or not isinstance(names, dict) or list(names) != ["data"] or more:
        raise Refused("run Python code of its own (builtins.eval)")
    if not isinstance(names["data"], StoredTensor):
        raise TypeError("eval of what is no array")
    return names["data"]


def _take_pair(items: Any) -> tuple[Any, ...]:
    """Stand in for `tuple`, as `paddle.save` uses it for (variable, array)."""
    if not isinstance(items, (tuple, list)):
        raise TypeError("a tuple of what has no items")
    return tuple(items)


PADDLE_NAMES: Mapping[tuple[str, str], Callable[..., Any]] = {
    (module, name): stand_in
    for module in ("builtins", "__builtin__")
    for name, stand_in in (("eval", _take_array), ("tuple", _take_pair))
}


def _join_pieces(file: Path, tensors: dict[str, StoredTensor], table: Any) -> None:
    """Put together what was saved in pieces: each is a stretch of the flattened array."""
    try:
        for name, entry in table.items():
            # Taken out, so that no piece can be used twice for a tensor beyond the file's size.
            shape, pieces = entry["OriginShape"], [tensors.pop(key) for key in entry["slices"]]
            if (
                not all(type(length) is int and length >= 0 for length in shape)
                or math.prod(shape) != sum(piece.size for piece in pieces)
                or {(piece.dtype, len(piece.shape)) for piece in pieces} != {(pieces[0].dtype, 1)}
            ):
                raise ValueError(name)
            tensors[name] = StoredTensor(shape, pieces[0].dtype, _pieces_reader(pieces, shape))
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file} is damaged: its pieces of tensors do not fit") from error


def _pieces_reader(pieces: list[StoredTensor], shape: tuple[int, ...]) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        joined = np.empty(math.prod(shape), pieces[0].dtype)
        start = 0
        for piece in pieces:
            joined[start : start + piece.size] = piece.read()
            start += piece.size
        return joined.reshape(shape)

    return read


def _widened(tensor: StoredTensor) -> StoredTensor:
    if tensor.dtype != "uint16":
        return tensor

    def read() -> np.ndarray:
        wide = tensor.read().astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)

    return StoredTensor(tensor.shape, "bfloat16", read)


def write_state_dict(file: Path, tensors: Mapping[str, StoredTensor]) -> None:
    """Write what `paddle.load` opens as name -> tensor, one tensor in memory at a time.

    `OSError` of a full disk goes through.
    """
    with file.open("wb") as stream:
        stream.write(pickle.PROTO + bytes([PROTOCOL]) + pickle.EMPTY_DICT)
        for name, tensor in tensors.items():
            stream.write(_text(name))
            _write_array(stream, name, tensor)
            stream.write(pickle.SETITEM)
        stream.write(pickle.STOP)


def _write_array(stream: BinaryIO, name: str, tensor: StoredTensor) -> None:
    """Write `_reconstruct(ndarray, (0,), b"b")` and its state, as NumPy 1 pickles an array."""
    array = read_as_announced(name, tensor)
    stream.write(
        b"".join(
            (
                _global("numpy.core.multiarray", "_reconstruct"),
                _global("numpy", "ndarray"),
                _integer(0) + pickle.TUPLE1,
                pickle.SHORT_BINBYTES + b"\x01b",
                pickle.TUPLE3 + pickle.REDUCE,
                pickle.MARK + _integer(1),
                pickle.MARK + b"".join(map(_integer, array.shape)) + pickle.TUPLE,
                *_dtype(array.dtype.str[1:]),
                pickle.NEWFALSE,
                pickle.BINBYTES8 + struct.pack("<Q", array.nbytes),
            )
        )
    )
    if array.size:
        stream.write(array.reshape(-1).view(np.uint8).data)
    stream.write(pickle.TUPLE + pickle.BUILD)


def _dtype(code: str) -> Iterator[bytes]:
    yield _global("numpy", "dtype")
    yield _text(code) + pickle.NEWFALSE + pickle.NEWTRUE + pickle.TUPLE3 + pickle.REDUCE
    yield pickle.MARK + _integer(3) + _text("<") + 3 * pickle.NONE
    yield _integer(-1) + _integer(-1) + _integer(0) + pickle.TUPLE + pickle.BUILD


def _global(module: str, name: str) -> bytes:
    return _text(module) + _text(name) + pickle.STACK_GLOBAL


def _text(text: str) -> bytes:
    encoded = text.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(encoded)) + encoded


def _integer(value: int) -> bytes:
    return pickle.LONG1 + b"\x08" + struct.pack("<q", value)
