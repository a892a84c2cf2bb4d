"""The loss of a model over windows, the same number whatever the batch size.

A matrix product sums in an order that depends on its number of rows, so a window's loss changes in
its last bits with the windows beside it. Therefore windows are always computed in the same blocks,
whose size follows from the window length alone; the batch size says only how many blocks are under
way before their losses are fetched from the device.

B windows, S window length, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np
import paddle
from numpy.typing import NDArray
from paddle import Tensor

from fastffn_cli.tasks.windows import Window
from models.gpt import GPT

BLOCK_TOKENS = 1024  # enough rows to keep a matrix product busy, little memory

T = TypeVar("T")


@dataclass(frozen=True)
class Score:
    """Sum of -log p over `targets` predicted tokens, in nats, float64."""

    nll: float = 0.0
    targets: int = 0


def score_windows(
    model: GPT,
    windows: Iterable[Window],
    *,
    batch_size: int,
    on_progress: Callable[[Score], None] | None = None,
) -> Score:
    """Return the summed loss of all windows, added up in float64 in their order."""
    model.eval()
    total = Score()
    with paddle.no_grad():
        for batch in batches(_blocks(windows), batch_size):
            under_way = [(_losses(model, block), block) for block in batch]
            for losses, block in under_way:
                losses_BS = losses.numpy().astype(np.float64)
                mask_BS = np.stack([window.mask[block[0].first :] for window in block])
                nll = float(np.sum(losses_BS.reshape(mask_BS.shape) * mask_BS))
                total = Score(total.nll + nll, total.targets + int(mask_BS.sum()))
            if on_progress is not None:
                on_progress(total)
    return total


def _blocks(windows: Iterable[Window]) -> Iterator[list[Window]]:
    """Group windows that predict from the same place on, as many as make `BLOCK_TOKENS` tokens."""
    block: list[Window] = []
    for window in windows:
        size = max(1, BLOCK_TOKENS // window.tokens.size)
        if block and (len(block) == size or window.first != block[0].first):
            yield block
            block = []
        block.append(window)
    if block:
        yield block


def batches(blocks: Iterator[list[T]], batch_size: int) -> Iterator[list[list[T]]]:
    """Group blocks that are under way together: as many as hold `batch_size`, at least one."""
    for block in blocks:
        more = -(-batch_size // len(block)) - 1
        yield [block, *islice(blocks, more)]


def _losses(model: GPT, block: list[Window]) -> Tensor:
    """Queue a block on the device; the losses of its predicting positions, in their order."""
    first = block[0].first
    x_BSD = model.hidden(_stack([window.tokens for window in block]))
    labels_BS = _stack([window.labels[first:] for window in block])
    return model.token_losses(x_BSD[:, first:], labels_BS)


def _stack(rows: list[NDArray[np.int64]]) -> Tensor:
    return paddle.to_tensor(np.stack(rows))
