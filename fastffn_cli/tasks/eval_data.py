"""What `eval` reads: a text, documents of a .jsonl file, or token files, as one stream of ids.

Every document in the stream ends with the end-of-text token, exactly as `prepare` writes it. All
sources are read piece by piece, so memory does not grow with the input (but for `detokenize`, whose
quotes pair up over the whole text).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fastffn_cli.data.cutting import Cutter
from fastffn_cli.data.documents import Piece, Progress, read_pieces
from fastffn_cli.data.inputs import SourceFile
from fastffn_cli.data.split import spans_of
from fastffn_cli.data.token_files import TokenFolder
from fastffn_cli.data.tokenizer import Tokenizer
from fastffn_cli.tasks.wikitext import detokenize, looks_like_wikitext

Ids = NDArray[np.int64]

CHUNK_TOKENS = 1 << 16
PIECE_CHARS = 1 << 18
DECODE_TOKENS = 1 << 12
CUT_CONTEXT = 8  # tokens either side of a cut: more than the four bytes of a character


class EvalData(Protocol):
    """A stream of token ids and what is known of it; the counts are final when it has been read.

    `num_bytes` are the UTF-8 bytes of the tokens that are predicted (of all but the first of each
    document), None without a tokenizer. `original_tokens` are the words of the text before
    `detokenize`, None where there is no such text.
    """

    eos_id: int | None
    num_tokens: int
    num_bytes: int | None
    original_tokens: int | None

    def chunks(self) -> Iterator[Ids]:
        """Yield the ids, in order, in arrays of any length."""

    def fraction(self) -> float:
        """How much of the source has been read, 0 to 1."""


class TextData:
    """A .txt file (one document) or a .jsonl file (one document a line).

    `detokenized` says whether WikiText's tokens were turned back; `detokenize=None` does so where
    the beginning of a .txt looks like WikiText.
    """

    def __init__(
        self,
        source: SourceFile,
        tokenizer: Tokenizer,
        *,
        json_key: str = "text",
        detokenize: bool | None = None,
    ) -> None:
        self.eos_id: int | None = tokenizer.eos_id
        self.num_tokens = 0
        self.num_bytes: int | None = 0
        self.is_text = source.kind == "text"
        self.detokenized = bool(detokenize)
        self._undecided = detokenize is None and self.is_text
        self._source, self._tokenizer, self._json_key = source, tokenizer, json_key
        self._cut = Cutter(tokenizer)
        self._words = WordCounter()
        self._progress = Progress()

    @property
    def original_tokens(self) -> int | None:
        """Words of a .txt as FleetX counts them: parts between single blanks."""
        return self._words.words if self.is_text else None

    def fraction(self) -> float:
        """How much of the file has been read."""
        return min(1.0, self._progress.bytes_read / max(1, self._source.size))

    def chunks(self) -> Iterator[Ids]:
        """Yield the ids of each piece of text, and the end-of-text token behind each document."""
        starts = True
        for piece in self._pieces():
            ids = self._tokenizer.encode(piece.text)
            self.num_bytes = (self.num_bytes or 0) + len(piece.text.encode("utf-8"))
            if starts and ids:
                # Nothing stands before a document's first token: it is not predicted.
                self.num_bytes -= _first_bytes(self._tokenizer, ids[0])
            starts = piece.last or (starts and not ids)
            self.num_tokens += len(ids)
            if piece.last:
                ids.append(self._tokenizer.eos_id)
            yield np.asarray(ids, dtype=np.int64)

    def _pieces(self) -> Iterator[Piece]:
        pieces = read_pieces(
            self._source, json_key=self._json_key, cut=self._cut, progress=self._progress
        )
        if not self.is_text:
            for piece in pieces:
                yield Piece(detokenize(piece.text) if self.detokenized else piece.text, piece.last)
            return
        whole: list[str] = []
        for piece in pieces:
            self._words.add(piece.text)
            if self._undecided:
                self.detokenized = looks_like_wikitext(piece.text)
                self._undecided = False
            if self.detokenized:
                whole.append(piece.text)
            else:
                yield piece
        if whole:
            yield from self._cut_up(detokenize("".join(whole)))

    def _cut_up(self, text: str) -> Iterator[Piece]:
        """Cut a long text so that it is not encoded in one go."""
        start = 0
        width = PIECE_CHARS
        while len(text) - start > width:
            position = self._cut(text[start : start + width])
            if position is None:
                width += PIECE_CHARS
                continue
            yield Piece(text[start : start + position], False)
            start, width = start + position, PIECE_CHARS
        yield Piece(text[start:], True)


class FolderData:
    """One part ("train", "valid", "test" or "all") of prepared token files."""

    original_tokens: int | None = None

    def __init__(
        self,
        folder: TokenFolder,
        *,
        split: str,
        part: str,
        eos_id: int | None,
        tokenizer: Tokenizer | None,
    ) -> None:
        self.eos_id = eos_id
        self.num_tokens = 0
        self._spans = spans_of(folder, split, part)
        self._bytes = ByteCounter(tokenizer, eos_id) if tokenizer is not None else None
        self.total = sum(span.stop - span.start for span in self._spans)

    @property
    def num_bytes(self) -> int | None:
        """Bytes of the text that the tokens read so far stand for."""
        return self._bytes.finish() if self._bytes is not None else None

    def fraction(self) -> float:
        """How much of the part has been read."""
        return self.num_tokens / max(1, self.total)

    def chunks(self) -> Iterator[Ids]:
        """Yield the ids of the part, in file order, ends of documents included."""
        for span in self._spans:
            for start in range(span.start, span.stop, CHUNK_TOKENS):
                stop = min(start + CHUNK_TOKENS, span.stop)
                ids = np.asarray(span.file.ids[start:stop], dtype=np.int64)
                self.num_tokens += ids.size
                if self._bytes is not None:
                    self._bytes.add(ids)
                yield ids


class WordCounter:
    """Counts `len(text.strip().split(" "))` of a text that comes in pieces."""

    def __init__(self) -> None:
        self._started = False
        self._blanks = 0
        self._trailing = 0

    @property
    def words(self) -> int:
        """The count so far; a text without a visible character has 1, as `"".split(" ")` has."""
        return self._blanks + 1

    def add(self, piece: str) -> None:
        """Count one more piece."""
        if not self._started:
            piece = piece.lstrip()
            self._started = bool(piece)
        visible = piece.rstrip()
        if visible:
            self._blanks += self._trailing + visible.count(" ")
            self._trailing = 0
        self._trailing += piece[len(visible) :].count(" ")


class ByteCounter:
    """Counts the UTF-8 bytes of predicted tokens: the first of each document is left out."""

    def __init__(self, tokenizer: Tokenizer, eos_id: int | None) -> None:
        self._tokenizer, self._eos_id = tokenizer, eos_id
        self._total = 0
        self._open: list[int] = []
        self._at_start = True

    def add(self, ids: Ids) -> None:
        """Count more of the stream."""
        if self._eos_id is None:
            self._extend(ids)
            return
        ends = np.flatnonzero(ids == self._eos_id)
        for segment in np.split(ids, ends)[: ends.size]:
            self._extend(segment[segment != self._eos_id])
            self.finish()
            self._at_start = True
        self._extend(ids[ends[-1] + 1 :] if ends.size else ids)

    def finish(self) -> int:
        """Return the bytes so far, an unfinished character included."""
        self._total += self._size(self._open)
        self._open = []
        return self._total

    def _extend(self, ids: Ids) -> None:
        if self._at_start and ids.size:
            self._total -= _first_bytes(self._tokenizer, int(ids[0]))
            self._at_start = False
        for start in range(0, ids.size, DECODE_TOKENS):
            self._open += ids[start : start + DECODE_TOKENS].tolist()
            while len(self._open) >= 2 * DECODE_TOKENS:
                cut = self._find_cut()
                self._total += self._size(self._open[:cut])
                self._open = self._open[cut:]

    def _find_cut(self) -> int:
        """Where the open tokens may be cut: not inside a character, so that bytes add up."""
        for cut in range(DECODE_TOKENS, DECODE_TOKENS + CUT_CONTEXT):
            left, right = self._open[cut - CUT_CONTEXT : cut], self._open[cut : cut + CUT_CONTEXT]
            whole = self._tokenizer.decode(left + right)
            if self._tokenizer.decode(left) + self._tokenizer.decode(right) == whole:
                return cut
        return DECODE_TOKENS

    def _size(self, ids: list[int]) -> int:
        return len(self._tokenizer.decode(ids).encode("utf-8")) if ids else 0


def _first_bytes(tokenizer: Tokenizer, token: int) -> int:
    """Bytes of a document's first token; a part of a character is taken as one."""
    text = tokenizer.decode([token])
    return 1 if text.startswith("\ufffd") else len(text.encode("utf-8"))
