"""Small MindRecord files, written from the description of the format: pages of a kilobyte or so."""

from __future__ import annotations

import json
import sqlite3
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HEADER_SIZE = 4096
INDEX_COLUMNS = ("ROW_ID", "PAGE_ID_RAW", "PAGE_OFFSET_RAW", "PAGE_OFFSET_RAW_END", "ROW_GROUP_ID",
                 "PAGE_ID_BLOB", "PAGE_OFFSET_BLOB", "PAGE_OFFSET_BLOB_END")  # fmt: skip


def pack(values: Sequence[int]) -> bytes:
    """Pack integers, each in as few bytes as it needs."""
    codes = [next(c for c in range(4) if -(1 << (8 << c) - 1) <= v < 1 << (8 << c) - 1)
             for v in values]  # fmt: skip
    bits = "".join(f"{code:02b}" for code in codes).ljust(8 * ((len(codes) + 3) // 4), "0")
    widths = bytes(int(bits[start : start + 8], 2) for start in range(0, len(bits), 8))
    data = b"".join(struct.pack("<" + "bhiq"[c], v) for c, v in zip(codes, values, strict=True))
    return struct.pack(">I", len(values)) + widths + data


def write_mindrecord(
    file: Path,
    rows: Sequence[Sequence[int]],
    *,
    column: str = "text",
    page_size: int = 1024,
    shards: Sequence[str] = (),
    **header: Any,
) -> Path:
    """Write rows of one column and their index; `header` replaces entries of the header."""
    pages: list[list[bytes]] = [[]]
    places = []
    for row in rows:
        payload = pack(row)
        blob = struct.pack("<Q", len(payload)) + payload
        if sum(map(len, pages[-1])) + len(blob) > page_size:
            pages.append([])
        start = sum(map(len, pages[-1]))
        places.append((len(pages) - 1, start, start + len(blob)))
        pages[-1].append(blob)
    ends = [sum(len(page) for page in pages[: number + 1]) for number in range(len(pages))]
    described = {
        "header_size": HEADER_SIZE,
        "page_size": page_size,
        "version": "3.0",
        "page": [
            {"page_id": number, "page_type": "BLOB_DATA", "page_size": sum(map(len, page)),
             "start_row_id": end - len(page), "end_row_id": end}
            for number, (page, end) in enumerate(zip(pages, ends, strict=True))
        ],
        "schema": [{"schema": {column: {"type": "int32", "shape": [-1]}}, "blob_fields": [column]}],
        "shard_addresses": [*shards] or [file.name],
    } | header  # fmt: skip
    text = json.dumps(described).encode()
    assert len(text) < HEADER_SIZE - 8, "too many pages: choose a larger page_size"
    content = (struct.pack("<Q", len(text)) + text).ljust(HEADER_SIZE, b"\0")
    content += b"".join(b"".join(page).ljust(page_size, b"\0") for page in pages)
    file.write_bytes(content)
    write_index(file, places)
    return file


def write_index(file: Path, places: Sequence[tuple[Any, Any, Any]]) -> None:
    """Write FILE.db for rows at (page, start, end)."""
    index = file.with_name(f"{file.name}.db")
    index.unlink(missing_ok=True)
    with sqlite3.connect(index) as database:
        columns = ", ".join(f"{name} INT NOT NULL" for name in INDEX_COLUMNS)
        database.execute(f"CREATE TABLE INDEXES({columns}, PRIMARY KEY(ROW_ID))")
        database.execute("CREATE TABLE SHARD_NAME(NAME TEXT NOT NULL)")
        database.execute("INSERT INTO SHARD_NAME VALUES(?)", [file.name])
        database.executemany(
            "INSERT INTO INDEXES VALUES(?, 9, 0, 13, 0, ?, ?, ?)",
            [(number, *place) for number, place in enumerate(places)],
        )
    database.close()


def change_header(file: Path, **changes: Mapping[str, Any]) -> None:
    """Replace entries of a header that is there."""
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    text = json.dumps(json.loads(content[8 : 8 + length]) | changes).encode()
    head = (struct.pack("<Q", len(text)) + text).ljust(HEADER_SIZE, b"\0")
    file.write_bytes(head + content[HEADER_SIZE:])
