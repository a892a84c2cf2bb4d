"""Pickle files, read without running anything that they say.

A pickle is a program for a small stack machine, and Python's own machine imports and calls whatever
the program names. This machine knows fewer operations and looks names up in a table of stand-ins of
ours, so that there is nothing to import and nothing foreign to call. Admitted are

* None, booleans, integers, floats, text, byte strings, lists, tuples, dictionaries with plain keys,
  `collections.OrderedDict` (attributes of one, as PyTorch gives it, are dropped);
* NumPy arrays and scalars of boolean, integer and floating point types, as NumPy 1 and 2 write them
  in the protocols 2 to 5 (`pickled_arrays`): arrays come out as `StoredTensor`;
* what the caller adds: names with stand-ins, and persistent ids.

Everything else is refused with `CheckpointError`: other names, sets, operations that make objects
(INST, OBJ, NEWOBJ, NEWOBJ_EX, EXT1 ...), buffers outside the file, the text protocols 0 and 1.

Long strings of a file are stepped over (`StoredBytes`) and read when their array is. Nothing
recurses, nothing is allocated by a number that is larger than what is left of the file, and the
number of operations is bounded. A result can still contain itself: walk it by levels that are
known, not by recursion.
"""

from __future__ import annotations

import os
import pickle
import pickletools
import struct
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from fastffn_cli.errors import CheckpointError
from fastffn_cli.interop import pickled_arrays
from fastffn_cli.interop.pickled_arrays import StoredBytes, Unbuilt

Construct = Callable[..., Any]
Allowed = Mapping[tuple[str, str], Construct]

LONGEST_IN_MEMORY = 1 << 10  # bytes of one string; longer ones stay in the file
LONGEST_NAME = 256
LONGEST_INTEGER = 64  # bytes
MOST_OPERATIONS = 500_000  # a model of a thousand tensors takes thirty thousand
PLAIN_KEYS = (str, bytes, int, float, bool, type(None))


class Refused(Exception):
    """What a pickle wants that is not admitted, as it goes on after `FILE wants to`."""


def _shown(name: Any) -> str:
    return "".join(each if each.isprintable() else "?" for each in str(name)[:80])


class Global:
    """A name that a pickle uses, with our stand-in for it."""

    def __init__(self, module: str, name: str, construct: Construct) -> None:
        self.module = module
        self.name = name
        self.construct = construct


def _ordered_dict() -> OrderedDict[Any, Any]:
    return OrderedDict()


def _empty_bytes() -> bytes:
    return b""


PLAIN: Allowed = {
    ("collections", "OrderedDict"): _ordered_dict,
    # How protocol 2 writes an empty byte string.
    ("__builtin__", "bytes"): _empty_bytes,
    ("builtins", "bytes"): _empty_bytes,
    **pickled_arrays.STAND_INS,
}


def read_pickle(file: Path, *, allowed: Allowed | None = None) -> Any:
    """Read a file that is one pickle; its arrays stay in it, as `StoredTensor`.

    Raises `CheckpointError` naming the file for what is not admitted, damaged, truncated or
    followed by something else.
    """
    try:
        with file.open("rb") as stream:
            result = load_pickle(stream, str(file), file=file, allowed=allowed)
            if stream.read(1):
                raise CheckpointError(f"{file} goes on after the end of its pickle: it is damaged")
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from error
    return result


def load_pickle(
    stream: BinaryIO,
    source: str,
    *,
    file: Path | None = None,
    allowed: Allowed | None = None,
    persistent_load: Callable[[Any], Any] | None = None,
) -> Any:
    """Read one pickle from the place where `stream` is, which has to be seekable.

    The stream is left right behind the pickle, where another one may begin. `source` is what
    messages call it. `file`, where the stream is an uncompressed file, is what arrays are read from
    later; without it, their bytes are read into memory now. `allowed` adds stand-ins by (module,
    name), called as a pickle would call the original; `persistent_load` gives what a persistent id
    stands for. Both get what the file says, unchecked; they raise `Refused` or `CheckpointError`
    for what must not be, `TypeError`, `ValueError` or `LookupError` for what is damaged.

    Raises `CheckpointError` for what is not admitted, damaged or truncated.
    """
    machine = _Machine(stream, source, file, {**PLAIN, **(allowed or {})}, persistent_load)
    try:
        return machine.run()
    except Refused as error:
        raise CheckpointError(
            f"{source} wants to {error} when it is loaded, and a model needs arrays and plain "
            "containers only. Nothing was run",
            hint="Such a file can do anything to a computer that loads it: use it only if you know "
            "who made it. If it is a checkpoint with other objects in it, save its weights alone",
        ) from None
    except (TypeError, ValueError, LookupError, ArithmeticError, struct.error) as error:
        # Content that fits the operations badly: a list where a dictionary should be, an empty
        # stack, a reference to nothing, text that is not UTF-8.
        raise CheckpointError(
            f"{source} is damaged: byte {machine.place} of its pickle makes no sense ({error})"
        ) from error


class _Machine:
    def __init__(
        self,
        stream: BinaryIO,
        source: str,
        file: Path | None,
        allowed: Allowed,
        persistent_load: Callable[[Any], Any] | None,
    ) -> None:
        self.stream = stream
        self.source = source
        self.file = file
        self.allowed = allowed
        self.persistent_load = persistent_load
        self.place = stream.tell()
        self.end = stream.seek(0, os.SEEK_END)
        stream.seek(self.place)
        self.stack: list[Any] = []
        self.below_marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        for _ in range(MOST_OPERATIONS):
            self.place = self.stream.tell()
            code = self.take(1)
            if code == pickle.STOP:
                return self.pop_last()
            operation = _OPERATIONS.get(code)
            if operation is None:
                raise self.refusal(code)
            operation(self)
        raise CheckpointError(
            f"{self.source} has more than {MOST_OPERATIONS:,} pickle operations: no model has"
        )

    def refusal(self, code: bytes) -> CheckpointError:
        names = [each.name for each in pickletools.opcodes if each.code == code.decode("latin1")]
        if not names:
            return CheckpointError(
                f"{self.source} is damaged: byte {self.place} is no pickle operation"
            )
        return CheckpointError(
            f"{self.source} uses the pickle operation {names[0]}, which no file of arrays and "
            "plain containers needs. Nothing was run"
        )

    # -- bytes -----------------------------------------------------------------------------------

    def take(self, count: int) -> bytes:
        data = self.stream.read(count) if count <= self.end - self.stream.tell() else b""
        if len(data) != count:
            raise CheckpointError(f"{self.source} is truncated: it ends inside its pickle")
        return data

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self) -> str:
        data = self.stream.readline(LONGEST_NAME)
        if not data.endswith(b"\n"):
            raise CheckpointError(f"{self.source} is damaged: byte {self.place} names nothing")
        return data[:-1].decode("utf-8")

    def string(self, length: int, *, utf8: bool) -> bytes | str | StoredBytes:
        if self.file is None or length <= LONGEST_IN_MEMORY:
            data = self.take(length)
            return data.decode("utf-8") if utf8 else data
        place = self.stream.tell()
        if length > self.end - place:
            raise CheckpointError(f"{self.source} is truncated: it ends inside its pickle")
        self.stream.seek(length, os.SEEK_CUR)
        return StoredBytes(self.file, place, length, utf8)

    # -- stack -----------------------------------------------------------------------------------

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop_last(self) -> Any:
        if len(self.stack) != 1 or self.below_marks:
            raise ValueError("it ends in the middle")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below_marks.pop()
        return items

    def mark(self) -> None:
        self.below_marks.append(self.stack)
        self.stack = []

    def remember(self, key: int) -> None:
        value = self.stack[-1]
        self.memo[key] = value
        if isinstance(value, Unbuilt):
            value.memo_keys.append(key)

    # -- containers ------------------------------------------------------------------------------

    def push_tuple(self, length: int) -> None:
        if len(self.stack) < length:
            raise IndexError("empty stack")
        self.stack[len(self.stack) - length :] = [tuple(self.stack[len(self.stack) - length :])]

    def extend(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise TypeError("items for what is no list")
        self.stack[-1].extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise TypeError("items for what is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # A tuple is hashed through all that it holds, as deep as it goes.
            if not isinstance(key, PLAIN_KEYS):
                raise TypeError(f"a {type(key).__name__} as a key")
            target[key] = value

    def set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items([key, value])

    # -- names and calls -------------------------------------------------------------------------

    def push_global(self, module: Any, name: Any) -> None:
        construct = None
        if isinstance(module, str) and isinstance(name, str):
            construct = self.allowed.get((module, name))
        if construct is None:
            raise Refused(f"use {_shown(module)}.{_shown(name)}")
        self.push(Global(module, name, construct))

    def push_global_from_stack(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.push_global(module, name)

    def reduce(self) -> None:
        arguments, called = self.stack.pop(), self.stack.pop()
        if not isinstance(called, Global) or not isinstance(arguments, tuple):
            raise TypeError("a call of what cannot be called")
        self.push(called.construct(*arguments))

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Unbuilt):
            built = target.build(state)
            self.stack[-1] = built
            for key in target.memo_keys:
                if self.memo[key] is target:
                    self.memo[key] = built
        elif not isinstance(target, OrderedDict) or not isinstance(state, dict):
            raise TypeError("attributes for what has none")

    def push_persistent(self) -> None:
        if self.persistent_load is None:
            raise self.refusal(pickle.BINPERSID)
        self.push(self.persistent_load(self.stack.pop()))

    # -- numbers ---------------------------------------------------------------------------------

    def push_integer(self, length: int) -> None:
        if not 0 <= length <= LONGEST_INTEGER:
            raise ValueError(f"an integer of {length} bytes")
        self.push(int.from_bytes(self.take(length), "little", signed=True))

    def check_protocol(self) -> None:
        if self.number("<B") > pickle.HIGHEST_PROTOCOL:
            raise ValueError("an unknown protocol")

    def check_frame(self) -> None:
        if self.number("<Q") > self.end - self.stream.tell():
            raise CheckpointError(f"{self.source} is truncated: it ends inside its pickle")

    def push_python2_string(self, length: int) -> None:
        """Text and bytes were one type in Python 2; both of NumPy's readings agree on Latin-1."""
        value = self.string(length, utf8=False)
        self.push(value.decode("latin1") if isinstance(value, bytes) else value)


_OPERATIONS: dict[bytes, Callable[[_Machine], None]] = {
    pickle.PROTO: _Machine.check_protocol,
    pickle.FRAME: _Machine.check_frame,
    pickle.MARK: _Machine.mark,
    pickle.NONE: lambda m: m.push(None),
    pickle.NEWTRUE: lambda m: m.push(True),
    pickle.NEWFALSE: lambda m: m.push(False),
    pickle.BININT: lambda m: m.push(m.number("<i")),
    pickle.BININT1: lambda m: m.push(m.number("<B")),
    pickle.BININT2: lambda m: m.push(m.number("<H")),
    pickle.LONG1: lambda m: m.push_integer(m.number("<B")),
    pickle.LONG4: lambda m: m.push_integer(m.number("<i")),
    pickle.BINFLOAT: lambda m: m.push(m.number(">d")),
    pickle.SHORT_BINSTRING: lambda m: m.push_python2_string(m.number("<B")),
    pickle.BINSTRING: lambda m: m.push_python2_string(m.number("<I")),
    pickle.SHORT_BINUNICODE: lambda m: m.push(m.string(m.number("<B"), utf8=True)),
    pickle.BINUNICODE: lambda m: m.push(m.string(m.number("<I"), utf8=True)),
    pickle.BINUNICODE8: lambda m: m.push(m.string(m.number("<Q"), utf8=True)),
    pickle.SHORT_BINBYTES: lambda m: m.push(m.string(m.number("<B"), utf8=False)),
    pickle.BINBYTES: lambda m: m.push(m.string(m.number("<I"), utf8=False)),
    pickle.BINBYTES8: lambda m: m.push(m.string(m.number("<Q"), utf8=False)),
    pickle.BYTEARRAY8: lambda m: m.push(m.string(m.number("<Q"), utf8=False)),
    pickle.EMPTY_LIST: lambda m: m.push([]),
    pickle.APPEND: lambda m: m.extend([m.stack.pop()]),
    pickle.APPENDS: lambda m: m.extend(m.pop_to_mark()),
    pickle.EMPTY_TUPLE: lambda m: m.push(()),
    pickle.TUPLE: lambda m: m.push(tuple(m.pop_to_mark())),
    pickle.TUPLE1: lambda m: m.push_tuple(1),
    pickle.TUPLE2: lambda m: m.push_tuple(2),
    pickle.TUPLE3: lambda m: m.push_tuple(3),
    pickle.EMPTY_DICT: lambda m: m.push({}),
    pickle.SETITEM: _Machine.set_item,
    pickle.SETITEMS: lambda m: m.set_items(m.pop_to_mark()),
    pickle.BINGET: lambda m: m.push(m.memo[m.number("<B")]),
    pickle.LONG_BINGET: lambda m: m.push(m.memo[m.number("<I")]),
    pickle.BINPUT: lambda m: m.remember(m.number("<B")),
    pickle.LONG_BINPUT: lambda m: m.remember(m.number("<I")),
    pickle.MEMOIZE: lambda m: m.remember(len(m.memo)),
    pickle.GLOBAL: lambda m: m.push_global(m.line(), m.line()),
    pickle.STACK_GLOBAL: _Machine.push_global_from_stack,
    pickle.REDUCE: _Machine.reduce,
    pickle.BUILD: _Machine.build,
    pickle.BINPERSID: _Machine.push_persistent,
}
