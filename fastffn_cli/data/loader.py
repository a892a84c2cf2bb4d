"""Batches read ahead in the background, so that the step never waits for the disk."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from fastffn_cli.data.dataset import Batch, TokenDataset

READ_AHEAD = 2


def iterate(
    dataset: TokenDataset,
    *,
    cursor: int,
    batch_size: int,
    rows: tuple[int, int] | None = None,
) -> Iterator[Batch]:
    """Yield the endless batches of `batch_size` samples from `cursor` on.

    Of each one only `rows`, (first, number), where other processes read the rest.
    One thread reads `READ_AHEAD` batches ahead. An error in it is raised here, at its batch;
    closing the iterator (or dropping it) ends the thread.
    """
    reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
    first, count = rows if rows is not None else (0, batch_size)
    pending: deque[Future[Batch]] = deque()
    try:
        while True:
            while len(pending) <= READ_AHEAD:
                pending.append(reader.submit(dataset.batch, cursor + first, count))
                cursor += batch_size
            yield pending.popleft().result()
    finally:
        reader.shutdown(wait=True, cancel_futures=True)
