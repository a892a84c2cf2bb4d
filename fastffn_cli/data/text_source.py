"""Text as a source of token ids: read, encoded, counted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastffn_cli import ui
from fastffn_cli.data.cutting import Cutter
from fastffn_cli.data.encoding import EncodedBatch, Reader, encode_batches
from fastffn_cli.data.inputs import Inputs
from fastffn_cli.data.token_writer import ids_dtype
from fastffn_cli.data.tokenizer import Tokenizer
from fastffn_cli.errors import DataError

# Text of one token, in bytes, in the most compact vocabularies: disk needed at the very least.
BYTES_A_TOKEN = 8


class TextSource:
    """Encodes the documents of `inputs` on `workers` threads."""

    label = "encoding"

    def __init__(
        self, inputs: Inputs, tokenizer: Tokenizer, *, json_key: str, workers: int
    ) -> None:
        self.tokenizer: Tokenizer | None = tokenizer
        self.dtype = ids_dtype(tokenizer.vocab_size)
        self.least_tokens = inputs.size if tokenizer.is_bytes else inputs.size // BYTES_A_TOKEN
        self._tokenizer = tokenizer
        self._cutter = Cutter(tokenizer)
        self._reader = Reader(inputs, json_key, self._cutter)
        self._workers = workers
        self._utf8_bytes = 0

    def batches(self) -> Iterator[EncodedBatch]:
        """Yield the ids of all documents in order."""
        for batch in encode_batches(
            self._reader,
            self._tokenizer,
            self._cutter,
            workers=self._workers,
            dtype=self.dtype,
        ):
            self._utf8_bytes += batch.utf8_bytes
            yield batch

    def finish(self, num_documents: int) -> dict[str, Any]:
        """Give the meta data of this source when all is written. DataError: there was no text."""
        if num_documents == 0:
            raise DataError("there is no text in the input: every document is empty")
        empty = self._reader.empty_documents
        if empty:
            ui.notice(f"{empty:,} empty document{'' if empty == 1 else 's'} left out")
        if self._cutter.forced:
            ui.notice(
                f"{self._cutter.forced:,} very long stretches without a blank were cut between "
                "two tokens"
            )
        return {
            "empty_documents": empty,
            "utf8_bytes": self._utf8_bytes,
            "tokenizer": self._tokenizer.name,
            "vocab_size": self._tokenizer.vocab_size,
            "eos_token": self._tokenizer.eos_token,
            "eos_id": self._tokenizer.eos_id,
            "json_key": self._reader.json_key,
        }
