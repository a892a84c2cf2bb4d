"""MindRecord files as a source of token ids.

A MindRecord holds rows of seq_length + 1 ids, cut from a stream of documents; the original trains
on each row by itself, row[:-1] predicting row[1:]. Here the rows are put together again: the stream
of tokens is all rows, one behind the other, every id as it was, and training cuts windows from it.
It sees the same tokens, and one prediction more a row, of its first token. (Rows that were made to
overlap have their common ids twice.)

Where the end-of-text id is known and occurs, it divides the stream into documents; otherwise each
row is one. A document goes on from row to row, but not from file to file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastffn_cli import ui
from fastffn_cli.data.encoding import EncodedBatch
from fastffn_cli.data.inputs import Inputs, SourceFile
from fastffn_cli.data.progress import ByteProgress
from fastffn_cli.data.token_writer import ids_dtype
from fastffn_cli.data.tokenizer import Tokenizer
from fastffn_cli.errors import DataError
from fastffn_cli.interop.mindrecord import MindRecord, open_mindrecord

BATCH_TOKENS = 1 << 18
GPT2_END_OF_TEXT = 50256
LARGEST_ID = 2**31 - 1


class RecordSource:
    """The ids of `inputs`, read twice: to check and measure them, and to write them.

    `tokenizer` is the one that made the ids, None where it is not known. DataError: damaged files,
    ids that cannot be its own.
    """

    label = "writing"

    def __init__(self, inputs: Inputs, tokenizer: Tokenizer | None, eos_id: int | None) -> None:
        self.tokenizer = tokenizer
        self._inputs = inputs
        self._records = _open_all(inputs)
        _note_missing_shards(self._records)
        self.least_tokens = self._empty = self._largest = self._eos_found = 0
        self._shortest, self._longest = LARGEST_ID, 0
        self._eos_id = _choose_eos(tokenizer, eos_id)
        self._measure()
        self._divisor = self._choose_divisor()
        rows = self._largest + 1 if tokenizer is None else tokenizer.vocab_size
        self.dtype = ids_dtype(rows)

    def batches(self) -> Iterator[EncodedBatch]:
        """Yield the ids of all rows in order."""
        done = 0
        for source, record in zip(self._inputs.files, self._records, strict=True):
            rows: list[NDArray[np.int64]] = []
            tokens = 0
            for number, row in enumerate(record.rows()):
                if not row.size:
                    continue
                if tokens >= BATCH_TOKENS:
                    place = done + _bytes_at(source, record, number)
                    yield self._make_batch(rows, place, last=False)
                    rows, tokens = [], 0
                rows.append(row)
                tokens += row.size
            done += source.size
            if rows:
                yield self._make_batch(rows, done, last=True)

    def finish(self, num_documents: int) -> dict[str, Any]:
        """Give the meta data of this source when all is written."""
        tokenizer = self.tokenizer
        return {
            "empty_documents": self._empty,
            "utf8_bytes": None,
            "tokenizer": tokenizer.name if tokenizer else None,
            "vocab_size": tokenizer.vocab_size if tokenizer else None,
            "eos_token": tokenizer.eos_token if tokenizer else None,
            "eos_id": self._eos_id,
            "largest_id": self._largest,
            "columns": sorted({record.column for record in self._records}),
            "rows": sum(record.num_rows for record in self._records),
            "row_tokens": [self._shortest, self._longest],
        }

    def _measure(self) -> None:
        """Read all rows, check their ids, and find out how many and how large they are."""
        done = 0
        with ByteProgress("checking", self._inputs.size) as bar:
            for source, record in zip(self._inputs.files, self._records, strict=True):
                for number, row in enumerate(record.rows()):
                    if row.size:
                        self._check_row(source, number, row)
                    else:
                        self._empty += 1
                    bar.update(done + _bytes_at(source, record, number))
                done += source.size
        if not self.least_tokens:
            raise DataError("there are no token ids in the input: every row is empty")

    def _check_row(self, source: SourceFile, number: int, row: NDArray[np.int64]) -> None:
        smallest, largest = int(row.min()), int(row.max())
        if smallest < 0 or largest > LARGEST_ID:
            wrong = smallest if smallest < 0 else largest
            raise DataError(f"{source.name}: row {number:,} has {wrong}, which is no token id")
        if self.tokenizer is not None and largest >= self.tokenizer.vocab_size:
            raise DataError(
                f"{source.name}: row {number:,} has id {largest:,}, the tokenizer "
                f"{self.tokenizer.name} has {self.tokenizer.vocab_size:,} ids",
                hint="name the tokenizer that made these ids, or leave --tokenizer out",
            )
        self.least_tokens += row.size
        self._largest = max(self._largest, largest)
        self._shortest, self._longest = min(self._shortest, row.size), max(self._longest, row.size)
        if self._eos_id is not None:
            self._eos_found += int(np.count_nonzero(row == self._eos_id))

    def _choose_divisor(self) -> int | None:
        """Give the id at which documents end, None where rows are documents; and say so."""
        if self._eos_found:
            return self._eos_id
        if self._eos_id is not None:
            ui.notice(f"end-of-text (id {self._eos_id}) does not occur: each row is one document")
            return None
        if self._largest == GPT2_END_OF_TEXT:
            ui.notice(
                f"the largest id is {GPT2_END_OF_TEXT}, GPT-2's end-of-text: documents end there; "
                "--eos-id N if it is another one"
            )
            self._eos_id = GPT2_END_OF_TEXT
            return GPT2_END_OF_TEXT
        ui.notice(
            "the end-of-text id is not known (--eos-id N or --tokenizer SPEC tells it): each row "
            "is one document"
        )
        return None

    def _make_batch(
        self, rows: Sequence[NDArray[np.int64]], bytes_read: int, *, last: bool
    ) -> EncodedBatch:
        """Join rows; `last`: the file ends with them, and the last document, too."""
        ids = np.concatenate(rows)
        if self._divisor is None:
            ends = np.cumsum([row.size for row in rows])
        else:
            ends = np.flatnonzero(ids == self._divisor) + 1
        closed = np.ones(ends.size, np.bool_)
        if not ends.size or ends[-1] < ids.size:
            ends, closed = np.append(ends, ids.size), np.append(closed, last)
        return EncodedBatch(
            ids=ids.astype(self.dtype),
            lens=np.diff(ends, prepend=0),
            last=closed,
            utf8_bytes=0,
            bytes_read=bytes_read,
        )


def _choose_eos(tokenizer: Tokenizer | None, eos_id: int | None) -> int | None:
    """Give the end-of-text id that the user or the tokenizer tells."""
    if tokenizer is None:
        return eos_id
    if eos_id is not None and eos_id != tokenizer.eos_id:
        raise DataError(
            f"--eos-id {eos_id}, but end-of-text of the tokenizer is {tokenizer.eos_id}",
            hint="leave one of the two out; --eos-token names another token of the tokenizer",
        )
    return tokenizer.eos_id


def _open_all(inputs: Inputs) -> list[MindRecord]:
    """Open all files; DataError with the problems of all of them."""
    records, problems = [], []
    for file in inputs.files:
        try:
            records.append(open_mindrecord(file.path))
        except DataError as error:
            problems.append(error)
    if problems:
        raise DataError("\n".join(map(str, problems)), hint=problems[0].hint)
    return records


def _bytes_at(source: SourceFile, record: MindRecord, row: int) -> int:
    """Give how far into a file a row is, for the progress."""
    return source.size * row // max(1, record.num_rows)


def _note_missing_shards(records: Sequence[MindRecord]) -> None:
    """Say which files of a set are not among the inputs."""
    given = {record.file.resolve() for record in records}
    for record in records:
        others = [record.file.resolve().with_name(name) for name in record.shards]
        absent = [other.name for other in others if other not in given]
        if len(others) > 1 and absent:
            shown = ", ".join(absent[:5]) + (", ..." if len(absent) > 5 else "")
            ui.notice(f"{record.file} is one of a set of {len(others)} files; not read: {shown}")
