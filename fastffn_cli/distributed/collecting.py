"""Bringing named arrays together that several processes hold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import paddle

if TYPE_CHECKING:
    from fastffn_cli.distributed.mesh import Axis


def collect(
    arrays: Mapping[str, np.ndarray], axis: Axis, *, everywhere: bool = False
) -> dict[str, np.ndarray]:
    """Return the arrays of all processes along `axis`, at its first one; elsewhere nothing.

    With `everywhere`, at each of them. Of a name that several hold, the first one's array counts.
    One array at a time travels: the others add zeros to it.
    """
    if axis.size == 1:
        return dict(arrays)
    kinds = {name: [list(array.shape), str(array.dtype)] for name, array in arrays.items()}
    held = [json.loads(text) for text in axis.all_texts(json.dumps(kinds))]
    found: dict[str, np.ndarray] = {}
    for name in dict.fromkeys(name for names in held for name in names):
        holder = next(index for index, names in enumerate(held) if name in names)
        receivers = held if everywhere else held[:1]
        value = arrays[name] if holder == axis.index else None
        if not all(name in names for names in receivers):
            sent = np.zeros(*held[holder][name]) if value is None else value
            value = axis.all_sum(paddle.to_tensor(sent)).numpy()
        elif value is None:
            value = arrays.get(name)
        if value is not None and (everywhere or axis.index == 0):
            found[name] = value
    return found
