"""Documents to ids on several threads, in order, with a bounded amount of text in flight.

The library encodes outside the interpreter's lock, so plain threads scale and share one tokenizer;
processes would only add start-up time and copies of the vocabulary.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fastffn_cli.data.cutting import Cutter
from fastffn_cli.data.documents import PIECE_CHARS, Piece, Progress, read_pieces
from fastffn_cli.data.inputs import Inputs
from fastffn_cli.data.tokenizer import Tokenizer

# Text that one thread encodes at a time; and batches that wait for each thread.
BATCH_CHARS = PIECE_CHARS
BATCHES_PER_WORKER = 2
# Text that the library is given as one: with longer ones it is slower by up to a quarter.
TEXT_CHARS = 1 << 14


@dataclass
class TextBatch:
    """Pieces of documents, and how many bytes of the inputs were read when it was full."""

    pieces: list[Piece] = field(default_factory=list)
    chars: int = 0
    bytes_read: int = 0

    def add(self, piece: Piece) -> None:
        """Append a piece."""
        self.pieces.append(piece)
        self.chars += len(piece.text)


@dataclass(frozen=True)
class EncodedBatch:
    """Ids of the pieces, each document closed by end-of-text.

    `lens` [pieces] counts the ids of each piece, `last` [pieces] tells where a document ends.
    """

    ids: NDArray[np.integer]
    lens: NDArray[np.int64]
    last: NDArray[np.bool_]
    utf8_bytes: int
    bytes_read: int


@dataclass
class Reader:
    """Reads inputs into batches; `empty_documents` counts what was skipped."""

    inputs: Inputs
    json_key: str
    cutter: Cutter
    empty_documents: int = 0

    def __iter__(self) -> Iterator[TextBatch]:
        batch, done = TextBatch(), 0
        for source in self.inputs.files:
            progress = Progress()
            for piece in read_pieces(
                source, json_key=self.json_key, cut=self.cutter, progress=progress
            ):
                batch.add(piece)
                if batch.chars >= BATCH_CHARS:
                    batch.bytes_read = done + progress.bytes_read
                    yield batch
                    batch = TextBatch()
            self.empty_documents += progress.empty_documents
            done += source.size
        batch.bytes_read = done
        yield batch


def encode_batches(
    batches: Iterable[TextBatch],
    tokenizer: Tokenizer,
    cutter: Cutter,
    *,
    workers: int,
    dtype: DTypeLike,
) -> Iterator[EncodedBatch]:
    """Encode batches on `workers` threads and yield them in their order."""
    pending: deque[Future[EncodedBatch]] = deque()
    threads = ThreadPoolExecutor(workers, thread_name_prefix="encode")
    with _without_library_threads():
        try:
            for batch in batches:
                pending.append(threads.submit(_encode, tokenizer, cutter, batch, dtype))
                if len(pending) > workers * BATCHES_PER_WORKER:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            threads.shutdown(wait=True, cancel_futures=True)


def _encode(
    tokenizer: Tokenizer, cutter: Cutter, batch: TextBatch, dtype: DTypeLike
) -> EncodedBatch:
    pieces = [part for piece in batch.pieces for part in _parts(piece, cutter)]
    rows = tokenizer.encode_batch([piece.text for piece in pieces])
    flat: list[int] = []
    lens = np.empty(len(rows), np.int64)
    for index, (row, piece) in enumerate(zip(rows, pieces, strict=True)):
        flat += row
        if piece.last:
            flat.append(tokenizer.eos_id)
        lens[index] = len(row) + piece.last
    return EncodedBatch(
        ids=np.array(flat, dtype),
        lens=lens,
        last=np.array([piece.last for piece in pieces], np.bool_),
        utf8_bytes=sum(len(piece.text.encode("utf-8")) for piece in pieces),
        bytes_read=batch.bytes_read,
    )


def _parts(piece: Piece, cutter: Cutter) -> list[Piece]:
    """Divide a piece, so that the library is given texts of the length that it likes."""
    *front, rest = cutter.split(piece.text, TEXT_CHARS)
    return [*(Piece(text, last=False) for text in front), Piece(rest, piece.last)]


@contextmanager
def _without_library_threads() -> Iterator[None]:
    """Keep the library from starting its own threads inside ours: `workers` means workers."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before
