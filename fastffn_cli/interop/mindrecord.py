"""MindRecord 3.0, MindSpore's file of training rows, read without MindSpore.

A file is a header and pages of one size. The header is JSON behind its length (u64, little-endian)
and names the columns and the pages. `FILE.db` beside it, an SQLite database, tells where each row
lies: at header_size + page * page_size + offset, the length of the row (u64, little-endian), then
its columns; where there are several, each behind its own length (u64, big-endian).

Integers are packed: their number n (u32, big-endian), ceil(n / 4) bytes of width codes, two bits
each from the highest down (0, 1, 2, 3: 1, 2, 4, 8 bytes), then the values, signed, little-endian.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from fastffn_cli.errors import DataError

INDEX_SUFFIX = ".db"
SQLITE_MARK = b"SQLite format 3\x00"
VERSION = "3.0"
# Where the original FastFFN and the converters around it keep token ids, in this order.
COLUMNS = ("text", "input_ids")
TYPES = ("int32", "int64")
LONGEST_HEADER = 1 << 26
LONGEST_ROW = 1 << 24  # bytes; a context of a million tokens has fewer
ROW = "SELECT PAGE_ID_BLOB, PAGE_OFFSET_BLOB, PAGE_OFFSET_BLOB_END FROM INDEXES ORDER BY ROW_ID"
INCOMPLETE = "the copy is incomplete: fetch it again"


@dataclass(frozen=True)
class MindRecord:
    """A file whose header and index were read.

    `column` holds the ids, `place` of all `columns` that a row has bytes of; `shards` are the names
    of all files of the set.
    """

    file: Path
    column: str
    place: int
    columns: int
    num_rows: int
    header_size: int
    page_size: int
    shards: tuple[str, ...]

    def rows(self) -> Iterator[NDArray[np.int64]]:
        """Yield the ids of each row [n], in order. DataError names a row that is damaged."""
        with self.file.open("rb") as stream, closing(_open_index(self.file)) as index:
            try:
                for number, (page, start, end) in enumerate(index.execute(ROW)):
                    try:
                        row = self._read_row(stream, page, start, end)
                    except ValueError as error:
                        raise DataError(f"{self.file}: row {number:,} {error}") from error
                    yield row
            except sqlite3.Error as error:
                raise _damaged_index(self.file, error) from error

    def _read_row(self, stream: BinaryIO, page: Any, start: Any, end: Any) -> NDArray[np.int64]:
        """Read one row; ValueError says what is wrong with it."""
        if not all(isinstance(number, int) for number in (page, start, end)) or not (
            0 <= page < 1 << 32 and 0 <= start < end <= self.page_size
        ):
            raise ValueError(f"lies in page {page!r} from {start!r} to {end!r}: a damaged index")
        if end - start > LONGEST_ROW:
            raise ValueError(f"has {end - start:,} bytes, more than any row of token ids")
        stream.seek(self.header_size + page * self.page_size + start)
        row = stream.read(end - start)
        if len(row) < end - start:
            raise ValueError(f"is not in the file: {INCOMPLETE}")
        if len(row) < 8 or int.from_bytes(row[:8], "little") != len(row) - 8:
            raise ValueError("does not begin with its length")
        return unpack_integers(self._pick_column(row))

    def _pick_column(self, row: bytes) -> bytes:
        if self.columns == 1:
            return row[8:]
        start = 8
        for _ in range(self.place):
            start += 8 + int.from_bytes(row[start : start + 8], "big")
        length = int.from_bytes(row[start : start + 8], "big")
        if start + 8 + length > len(row):
            raise ValueError(f"ends inside its column {self.column}")
        return row[start + 8 : start + 8 + length]


def looks_like_mindrecord(file: Path) -> bool:
    """Whether a file begins with the header of a MindRecord. Never raises."""
    try:
        # A pipe would wait for ever.
        return file.is_file() and _read_header(file) is not None
    except OSError:
        return False


def data_file_of(file: Path) -> Path | None:
    """Give the name of the MindRecord that a `.db` file is the index of; None if it is no index."""
    if file.suffix != INDEX_SUFFIX:
        return None
    try:
        with file.open("rb") as stream:
            is_index = stream.read(len(SQLITE_MARK)) == SQLITE_MARK
    except OSError:
        return None
    return file.with_suffix("") if is_index else None


def open_mindrecord(file: Path) -> MindRecord:
    """Read header and index of a file.

    DataError: another version, truncated, no integer column `text` or `input_ids`, an index that is
    missing, damaged or of another file.
    """
    header = _read_header(file)
    if header is None:
        raise DataError(f"{file}: not a MindRecord")
    try:
        return _interpret(file, header)
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise DataError(f"{file}: its header is damaged ({error!r})") from error


def unpack_integers(packed: bytes) -> NDArray[np.int64]:
    """Give the values [n] of a packed column; ValueError where the bytes are not such a column."""
    count = int.from_bytes(packed[:4], "big")
    values_start = 4 + (count + 3) // 4
    data = np.frombuffer(packed, np.uint8)
    if len(packed) < values_start + count:
        raise ValueError(f"ends inside its {count:,} integers")
    groups = data[4:values_start, None] >> np.array([6, 4, 2, 0], np.uint8)
    codes = (groups & 3).reshape(-1)[:count]
    ends = np.cumsum(np.left_shift(1, codes, dtype=np.int64)) + values_start
    if (int(ends[-1]) if count else values_start) != len(packed):
        raise ValueError(f"has {len(packed):,} bytes, its {count:,} integers take another number")
    values = np.empty(count, np.int64)
    for code in range(4):
        chosen = codes == code
        width = 1 << code
        places = ends[chosen, None] + np.arange(-width, 0)
        values[chosen] = data[places].view(f"<i{width}")[:, 0]
    return values


def _read_header(file: Path) -> dict[str, Any] | None:
    """Read the header; None where a file does not begin with one. OSError goes through."""
    with file.open("rb") as stream:
        size = file.stat().st_size
        head = stream.read(9)
        length = int.from_bytes(head[:8], "little")
        if head[8:] != b"{" or length > min(size - 8, LONGEST_HEADER):
            return None
        stream.seek(8)
        try:
            header = json.loads(stream.read(length))
        except (ValueError, RecursionError):
            return None
    wanted = ("header_size", "page_size", "schema", "page", "version")
    return header if isinstance(header, dict) and all(key in header for key in wanted) else None


def _interpret(file: Path, header: Mapping[str, Any]) -> MindRecord:
    if header["version"] != VERSION:
        raise DataError(f"{file}: MindRecord of version {header['version']!r}; {VERSION} is read")
    header_size, page_size = header["header_size"], header["page_size"]
    pages = [page for page in header["page"] if page["page_type"] == "BLOB_DATA"]
    numbers = [header_size, page_size]
    numbers += [page[key] for page in pages for key in ("page_id", "page_size", "end_row_id")]
    if not all(isinstance(number, int) and 0 <= number < 1 << 48 for number in numbers):
        raise DataError(f"{file}: its header is damaged (sizes {numbers[:5]})")
    ends = (header_size + page["page_id"] * page_size + page["page_size"] for page in pages)
    needed, size = max(ends, default=0), file.stat().st_size
    if size < needed:
        raise DataError(f"{file}: has {size:,} bytes, its pages take {needed:,}", hint=INCOMPLETE)
    schema = header["schema"][0]
    blobs = [str(name) for name in schema["blob_fields"]]
    column = _find_column(file, schema["schema"], blobs)
    num_rows = max((page["end_row_id"] for page in pages), default=0)
    _check_index(file, num_rows)
    return MindRecord(
        file=file,
        column=column,
        place=blobs.index(column),
        columns=len(blobs),
        num_rows=num_rows,
        header_size=header_size,
        page_size=page_size,
        shards=tuple(Path(str(shard)).name for shard in header.get("shard_addresses") or ()),
    )


def _find_column(file: Path, types: Mapping[str, Any], blobs: list[str]) -> str:
    for name in COLUMNS:
        if name in blobs and name in types and types[name].get("type") in TYPES:
            return name
    there = ", ".join(
        f"{name} ({entry.get('type')}{'' if name in blobs else ', one a row'})"
        for name, entry in types.items()
    )
    raise DataError(
        f"{file}: no column of token ids; it has {there or 'none'}",
        hint=f"rows of {' or '.join(TYPES)} are read, in a column {' or '.join(COLUMNS)}",
    )


def _open_index(file: Path) -> sqlite3.Connection:
    """Open `FILE.db` for reading alone: no lock and no journal beside it."""
    index = file.with_name(file.name + INDEX_SUFFIX)
    if not index.is_file():
        raise DataError(
            f"{file}: its index {index.name} is not there",
            hint=f"a MindRecord is two files: copy {index.name} beside it, too",
        )
    return sqlite3.connect(f"{index.resolve().as_uri()}?mode=ro&immutable=1", uri=True)


def _check_index(file: Path, num_rows: int) -> None:
    """Refuse an index that is none, or of another file."""
    with closing(_open_index(file)) as index:
        try:
            found = index.execute("SELECT type, sql FROM sqlite_master WHERE name = 'INDEXES'")
            kind, sql = found.fetchone() or ("", "")
            # A view or a virtual table could compute for ever.
            if kind != "table" or not str(sql).upper().startswith("CREATE TABLE"):
                raise DataError(f"{file}{INDEX_SUFFIX}: not the index of a MindRecord")
            (count,) = index.execute("SELECT count(*) FROM INDEXES").fetchone()
        except sqlite3.Error as error:
            raise _damaged_index(file, error) from error
    if count != num_rows:
        raise DataError(
            f"{file}: has {num_rows:,} rows, its index {file.name}{INDEX_SUFFIX} has {count:,}",
            hint="they do not belong together: fetch both again",
        )


def _damaged_index(file: Path, error: sqlite3.Error) -> DataError:
    return DataError(f"{file}{INDEX_SUFFIX}: damaged index ({error})", hint=INCOMPLETE)
