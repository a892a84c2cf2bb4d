"""Cut a stream of tokens into overlapping windows that predict every token once.

The first window predicts all its tokens. Each later one moves on by `stride` tokens and predicts
only the last `stride` of them: the rest is context. These are FleetX's windows (`LM_Eval_Dataset`)
without those that it makes beyond the end of the text, which predict nothing.

S window length.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Window:
    """Inputs and labels [S]; `mask` [S] is 1 where a label counts, 0 before `first` throughout."""

    tokens: Ids
    labels: Ids
    mask: NDArray[np.float64]
    first: int


def cut_windows(
    chunks: Iterable[Ids], *, seq_len: int, stride: int, eos_id: int | None
) -> Iterator[Window]:
    """Yield the windows of a stream that comes in chunks, holding little more than one of them.

    As in training, what follows an end-of-text token is not predicted: it begins a document that
    has nothing to do with what stands before. The end-of-text token itself is.
    """
    if not 1 <= stride <= seq_len:
        raise ValueError(f"stride is {stride}, expected 1 to {seq_len}")
    buffer: NDArray[np.int64] = np.empty(0, np.int64)
    first = 0
    for chunk in chunks:
        buffer = np.concatenate([buffer, chunk])
        start = 0
        while buffer.size - start > seq_len:
            yield _window(buffer[start : start + seq_len + 1], seq_len, first, eos_id)
            start, first = start + stride, seq_len - stride
        buffer = buffer[start:]
    # The label at position s is token s + 1: beyond `first` + 1 tokens, one is left to predict.
    if buffer.size > first + 1:
        yield _window(buffer, seq_len, first, eos_id)


def _window(ids: Ids, seq_len: int, first: int, eos_id: int | None) -> Window:
    padded = np.full(seq_len + 1, 0 if eos_id is None else eos_id, np.int64)
    padded[: ids.size] = ids
    tokens, labels = padded[:-1], padded[1:]
    places = np.arange(seq_len)
    counts = (places >= first) & (places + 1 < ids.size)
    if eos_id is not None:
        counts &= tokens != eos_id
    return Window(tokens, labels, counts.astype(np.float64), first)
