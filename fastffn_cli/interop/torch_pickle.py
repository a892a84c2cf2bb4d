"""The pickle in a file of `torch.save`: tensors as views of storages, still without values.

Stand-ins for what torch's own names would do (torch 2.13 `_utils.py`, `serialization.py`). They
check types and signs; whether a view lies within its storage, and the storage in the file, is
checked by `torch_file`, which knows the file.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastffn_cli.errors import CheckpointError
from fastffn_cli.interop.pickled import Global

DTYPES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16", "LongStorage": "int64", "IntStorage": "int32",
    "ShortStorage": "int16", "CharStorage": "int8", "ByteStorage": "uint8", "BoolStorage": "bool",
}  # fmt: skip


@dataclass(frozen=True)
class Storage:
    """A run of values in the file; `start` counts values from the beginning of the storage `key`.

    `count` is what the pickle says, and is compared with the file before it is used.
    """

    key: str
    dtype: str
    count: int
    start: int = 0


@dataclass(frozen=True)
class View:
    """A tensor: a storage and the steps through it, as the pickle gives them."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def extent(self) -> int:
        """Values from the first to the last one, both included; 0 for an empty tensor."""
        if not self.size:
            return 0
        steps = zip(self.shape, self.strides, strict=True)
        return 1 + sum((length - 1) * stride for length, stride in steps)

    @property
    def contiguous(self) -> bool:
        """Whether the values lie in C order without gaps."""
        expected = 1
        for length, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if length != 1 and stride != expected:
                return False
            expected *= length
        return True


def storage_of(persistent_id: Any) -> Storage:
    """Stand in for `persistent_load` of both containers."""
    if not isinstance(persistent_id, tuple) or len(persistent_id) not in (5, 6):
        raise ValueError("a persistent id that is no storage")
    tag, kind, key, _, count = persistent_id[:5]
    if tag != "storage" or not isinstance(kind, Global) or kind.name not in DTYPES:
        raise ValueError("a persistent id that is no storage")
    if not isinstance(key, str) or not _is_count(count):
        raise ValueError("a storage without key or length")
    storage = Storage(key, DTYPES[kind.name], count)
    view = persistent_id[5] if len(persistent_id) == 6 else None
    if view is None:
        return storage
    _, offset, length = view
    if not _is_count(offset) or not _is_count(length) or offset + length > count:
        raise ValueError("a view beyond its storage")
    return Storage(key, storage.dtype, length, offset)


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> View:
    """Stand in for `torch._utils._rebuild_tensor` and `_v2`; gradients and hooks do not count."""
    if not isinstance(storage, Storage) or not _is_count(offset):
        raise ValueError("a tensor without storage")
    if not _are_counts(shape) or not _are_counts(strides) or len(shape) != len(strides):
        raise ValueError("a tensor without shape")
    return View(storage, offset, shape, strides)


def _rebuild_parameter(tensor: Any, *_: Any) -> View:
    if not isinstance(tensor, View):
        raise ValueError("a parameter that is no tensor")
    return tensor


def _no_call(*_: Any) -> Any:
    raise ValueError("a call of a type")


ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    **{("torch", name): _no_call for name in DTYPES},
}


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _are_counts(values: Any) -> bool:
    return isinstance(values, tuple) and len(values) <= 32 and all(map(_is_count, values))


def named_views(file: Path, content: Any) -> dict[str, View]:
    """Give the tensors of the unpickled object, which has to be a dictionary of them."""
    if isinstance(content, dict):
        others = [
            name
            for name, value in content.items()
            if not isinstance(name, str) or not isinstance(value, View)
        ]
        if content and not others:
            return content
        holds = f"a dictionary with {', '.join(repr(name)[:40] for name in others[:5])}"
    else:
        holds = f"a {type(content).__name__}"
    raise CheckpointError(
        f"{file} holds {holds}, and not tensors by name",
        hint="Save the weights alone: torch.save(model.state_dict(), FILE), or "
        "model.save_pretrained(DIR)",
    )
