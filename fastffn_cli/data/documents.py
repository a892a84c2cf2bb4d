"""Input files to documents, in bounded memory.

A `.txt` file is one document, with its text as it is (a byte order mark is dropped, CRLF becomes
LF). A `.jsonl` file has one document a line, stripped of surrounding blanks as FleetX does it. A
long `.txt` comes in pieces, cut by `cut` where that does not change the tokens. Documents without a
visible character are skipped and counted.

Evaluations that score one passage after the other read either kind line by line (`read_passages`).
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, NamedTuple, TypeVar, cast

from fastffn_cli.data.inputs import JSON_LINES, MINDRECORD, SourceFile
from fastffn_cli.errors import DataError

PIECE_CHARS = 1 << 18

T = TypeVar("T")

# Given the text so far, where may it be cut; None: nowhere yet, read on.
Cut = Callable[[str], int | None]


class Piece(NamedTuple):
    """Text of one document, or a part of it; `last`: the document ends here."""

    text: str
    last: bool


class Line(NamedTuple):
    """The text of one line, stripped, and its place as FILE:LINE."""

    place: str
    text: str


@dataclass
class Progress:
    """What the reader has done: `bytes_read` on disk (of the current file), skipped documents."""

    bytes_read: int = 0
    empty_documents: int = 0


def read_pieces(
    source: SourceFile, *, json_key: str, cut: Cut, progress: Progress
) -> Iterator[Piece]:
    """Yield the documents of a file as pieces of about `PIECE_CHARS` characters or one document.

    DataError names the file and the line (and byte) of what cannot be read.
    """

    def read(stream: IO[bytes]) -> Iterator[Piece]:
        if source.kind == JSON_LINES:
            return _read_lines(source.name, stream, json_key, progress)
        return _read_text(source.name, stream, cut, progress)

    yield from _read(source, progress, read)


def read_passages(source: SourceFile, *, json_key: str, progress: Progress) -> Iterator[Line]:
    """Yield the passages of a file: one a line of a .txt, one a record of a .jsonl.

    DataError names the file and the line of what cannot be read and of a line without text; empty
    lines at the very end are none.
    """

    def read(stream: IO[bytes]) -> Iterator[Line]:
        empty = None
        for place, line in _decode_lines(source.name, stream):
            if not line.strip():
                empty = empty or place
                continue
            if empty is not None:
                raise DataError(f"{empty}: an empty line, and each line is one passage")
            text = line.strip()
            if source.kind == JSON_LINES:
                text = _text_of(place, line, json_key)
            if not text:
                raise DataError(f"{place}: {json_key!r} is empty, expected a passage")
            yield Line(place, text)

    yield from _read(source, progress, read)


def _read(
    source: SourceFile, progress: Progress, read: Callable[[IO[bytes]], Iterator[T]]
) -> Iterator[T]:
    """Yield what `read` makes of the opened file; DataError where it cannot be read."""
    if source.kind == MINDRECORD:
        raise DataError(
            f"{source.name}: a MindRecord, which holds token ids and no text",
            hint=f"make token files of it: fastffn prepare {source.name} --out DIR, and name DIR",
        )
    try:
        with source.path.open("rb") as raw:
            stream = cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if source.compressed else raw
            for item in read(stream):
                progress.bytes_read = raw.tell()
                yield item
        progress.bytes_read = source.size
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{source.name}: damaged gzip file ({error})",
            hint="fetch it again; gzip -t FILE checks it",
        ) from error
    except OSError as error:
        raise DataError(f"{source.name}: {error.strerror}") from error


def _read_text(name: str, stream: IO[bytes], cut: Cut, progress: Progress) -> Iterator[Piece]:
    """Yield one document in pieces; nothing if it has no visible character."""
    buffer, started = "", False
    for text in _decode(name, stream):
        buffer += text
        while len(buffer) > PIECE_CHARS:
            position = cut(buffer)
            if position is None:
                break
            head, buffer = buffer[:position], buffer[position:]
            yield Piece(head, False)
            started = True
    if started or buffer.strip():
        yield Piece(buffer, True)
    else:
        progress.empty_documents += 1


def _decode(name: str, stream: IO[bytes]) -> Iterator[str]:
    """Decode UTF-8 in portions of `PIECE_CHARS` bytes; DataError with line and byte offset."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    line, offset, at_start = 1, 0, True
    while True:
        portion = stream.read(PIECE_CHARS)
        held = len(decoder.getstate()[0])
        try:
            text = decoder.decode(portion, final=not portion)
        except UnicodeDecodeError as error:
            good = bytes(error.object)[: error.start]
            place = offset - held + error.start
            raise _undecodable(name, line + good.count(b"\n"), place, error) from error
        line += text.count("\n")
        offset += len(portion)
        if at_start and text:
            text, at_start = text.removeprefix("\ufeff"), False
        yield newlines.decode(text, final=not portion)
        if not portion:
            return


def _undecodable(name: str, line: int, offset: int, error: UnicodeDecodeError) -> DataError:
    bad = bytes(error.object)[error.start : error.start + 4].hex(" ")
    encoding = "UTF-16" if offset == 0 and bad[:5] in ("ff fe", "fe ff") else "LATIN1"
    return DataError(
        f"{name}:{line}: byte {offset:,} ({bad}) is not UTF-8 text: {error.reason}",
        hint=f"convert it first, for example: iconv -f {encoding} -t UTF-8 OLD > NEW",
    )


def _read_lines(name: str, stream: IO[bytes], json_key: str, progress: Progress) -> Iterator[Piece]:
    """Yield one document a line of JSON; blank lines are none."""
    for place, line in _decode_lines(name, stream):
        if not line.strip():
            continue
        document = _text_of(place, line, json_key)
        if document:
            yield Piece(document, True)
        else:
            progress.empty_documents += 1


def _decode_lines(name: str, stream: IO[bytes]) -> Iterator[tuple[str, str]]:
    """Yield each line with its place, FILE:LINE; DataError with line and byte offset."""
    offset = 0
    for number, line in enumerate(stream, start=1):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise _undecodable(name, number, offset + error.start, error) from error
        offset += len(line)
        yield f"{name}:{number}", text.removeprefix("\ufeff") if number == 1 else text


def _text_of(place: str, line: str, json_key: str) -> str:
    """Take the text out of one line of JSON."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not JSON: {error}") from error
    if not isinstance(record, dict):
        raise DataError(f"{place}: {type(record).__name__} instead of a JSON object")
    if json_key not in record:
        keys = ", ".join(repr(key) for key in record) or "none"
        raise DataError(
            f"{place}: no key {json_key!r} (the keys are: {keys})",
            hint="name the key that holds the text: --json-key KEY",
        )
    text = record[json_key]
    if not isinstance(text, str):
        raise DataError(f"{place}: {json_key!r} is {type(text).__name__}, expected a string")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{place}: {json_key!r} has an unpaired surrogate at character {error.start:,}"
        ) from error
    return text.strip()
