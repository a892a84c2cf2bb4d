"""How our tensors are named and arranged elsewhere, as tables that work in both directions.

A `Rule` ties one of our tensors to the one or several it is stored as. Reading joins theirs into
ours, writing splits ours into theirs; both only move values, so a round trip is bit-equal.

Ours: weights [in, out], a fused query-key-value projection whose columns are interleaved per head
(column = (head * 3 + {q, k, v}) * K + k), as FleetX has it. D hidden_size, H heads, K head size.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastffn_cli.engine.tensor_file import StoredTensor
from fastffn_cli.errors import CheckpointError

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Arrangement:
    """One way of storing a tensor: as `len(shapes(ours))` tensors.

    `join` makes our array of theirs, `split` theirs of ours, in the order of `Rule.theirs`.
    """

    shapes: Callable[[Shape], list[Shape]]
    join: Callable[[list[np.ndarray]], np.ndarray]
    split: Callable[[np.ndarray], list[np.ndarray]]


SAME = Arrangement(
    shapes=lambda shape: [shape], join=lambda parts: parts[0], split=lambda ours: [ours]
)
TRANSPOSED = Arrangement(
    shapes=lambda shape: [shape[::-1]], join=lambda parts: parts[0].T, split=lambda ours: [ours.T]
)


def qkv_blocks(heads: int) -> Arrangement:
    """All queries, then all keys, then all values, in one tensor [..., 3D]: GPT-2's `c_attn`."""

    def join(parts: list[np.ndarray]) -> np.ndarray:
        return _interleave(np.split(parts[0], 3, axis=-1), heads)

    def split(ours: np.ndarray) -> list[np.ndarray]:
        return [np.concatenate(_separate(ours, heads), axis=-1)]

    return Arrangement(lambda shape: [shape], join, split)


def qkv_separate(heads: int, *, transposed: bool = False) -> Arrangement:
    """Queries, keys and values in three tensors [..., D] (`transposed`: [D, in])."""

    def shapes(shape: Shape) -> list[Shape]:
        part = (*shape[:-1], shape[-1] // 3)
        return [part[::-1] if transposed else part] * 3

    def join(parts: list[np.ndarray]) -> np.ndarray:
        return _interleave([part.T if transposed else part for part in parts], heads)

    def split(ours: np.ndarray) -> list[np.ndarray]:
        return [part.T if transposed else part for part in _separate(ours, heads)]

    return Arrangement(shapes, join, split)


def _interleave(qkv: Sequence[np.ndarray], heads: int) -> np.ndarray:
    """Join [..., D] of q, k and v into [..., 3D], the three of a head side by side."""
    split = [part.reshape(*part.shape[:-1], heads, 1, -1) for part in qkv]
    return np.concatenate(split, axis=-2).reshape(*qkv[0].shape[:-1], -1)


def _separate(fused: np.ndarray, heads: int) -> list[np.ndarray]:
    """Undo `_interleave`."""
    split = fused.reshape(*fused.shape[:-1], heads, 3, -1)
    return [split[..., part, :].reshape(*fused.shape[:-1], -1) for part in range(3)]


@dataclass(frozen=True)
class Rule:
    """One of our tensors and the names under which it is stored, in one arrangement."""

    ours: str
    theirs: tuple[str, ...]
    arrangement: Arrangement = SAME


def rule(ours: str, *theirs: str, arrangement: Arrangement = SAME) -> Rule:
    """Shorthand for a line of a table."""
    return Rule(ours, theirs, arrangement)


def join_tensors(
    rules: Sequence[Rule],
    theirs: Mapping[str, StoredTensor],
    shapes: Mapping[str, Shape],
    path: Path,
    *,
    ignored: Collection[str] = (),
) -> dict[str, StoredTensor]:
    """Give our tensors (float32, `shapes` of the model) as they lie in another system's file.

    Raises `CheckpointError` listing everything that is missing, unexpected (neither in a rule nor
    in `ignored`), wrongly shaped or not of a floating point type.
    """
    problems = []
    wanted = {
        name: shape
        for entry in rules
        for name, shape in zip(
            entry.theirs, entry.arrangement.shapes(shapes[entry.ours]), strict=True
        )
    }
    for name, shape in wanted.items():
        if name not in theirs:
            problems.append(f"missing: {name} {list(shape)}")
        elif theirs[name].shape != shape:
            problems.append(f"{name} is {list(theirs[name].shape)}, expected {list(shape)}")
        elif "float" not in theirs[name].dtype:
            problems.append(f"{name} is of type {theirs[name].dtype}, expected floating point")
    problems += [
        f"unexpected: {name} {list(tensor.shape)}"
        for name, tensor in theirs.items()
        if name not in wanted and name not in ignored
    ]
    if problems:
        shown = "\n".join(problems[:20])
        more = f"\n... {len(problems)} in all" if len(problems) > 20 else ""
        raise CheckpointError(
            f"{path} does not fit a GPT of this size:\n{shown}{more}",
            hint="If the sizes are wrong, give them: -c FILE (the YAML it was trained with), or "
            "-o Model.key=value",
        )
    return {
        entry.ours: _joined(entry, [theirs[name] for name in entry.theirs], shapes[entry.ours])
        for entry in rules
    }


def _joined(entry: Rule, parts: list[StoredTensor], shape: Shape) -> StoredTensor:
    def read() -> np.ndarray:
        arrays = [part.as_float32().read() for part in parts]
        return np.asarray(entry.arrangement.join(arrays), order="C")

    return StoredTensor(shape, "float32", read)


def split_tensors(
    rules: Sequence[Rule], ours: Mapping[str, StoredTensor]
) -> dict[str, StoredTensor]:
    """Give their tensors, in the order of the rules, as they follow from ours."""
    theirs: dict[str, StoredTensor] = {}
    for entry in rules:
        tensor = ours[entry.ours]
        for place, shape in enumerate(entry.arrangement.shapes(tensor.shape)):
            theirs[entry.theirs[place]] = _split(entry, tensor, place, shape)
    return theirs


def _split(entry: Rule, tensor: StoredTensor, place: int, shape: Shape) -> StoredTensor:
    def read() -> np.ndarray:
        return np.asarray(entry.arrangement.split(tensor.read())[place], order="C")

    return StoredTensor(shape, tensor.dtype, read)
