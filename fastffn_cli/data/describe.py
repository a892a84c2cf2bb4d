"""What is in a prepared folder: for `inspect`, and in one line for reports."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastffn_cli.data.split import PARTS, divided_by, spans_of
from fastffn_cli.data.token_files import TokenFile, TokenFolder, open_tokens
from fastffn_cli.data.tokenizer import Tokenizer

ROWS = 3
ROW_TOKENS = 48
NAMED_SOURCES = 12
FINGERPRINT_IDS = 1 << 16


def describe_tokens(
    path: Path, *, split: str | Sequence[float] = "949,50,1", rows: int = ROWS
) -> dict[str, Any]:
    """Describe a prepared folder or prefix as plain JSON values.

    Keys: path, tokens, documents, files (each name, ids_file, bytes, dtype, tokens, documents,
    mean_document, longest_document), tokenizer, vocab_size, eos_id, utf8_bytes (None where
    `meta.json` does not tell), largest_id, split (weights as given, divided_by, and tokens and
    documents of train, valid, test), rows (of the first documents: document, tokens, ids, text;
    text is None without a tokenizer). Every id is read once. DataError as `open_tokens`.
    """
    folder = open_tokens(path)
    tokenizer = Tokenizer.load(folder.tokenizer_dir) if folder.tokenizer_dir else None
    return {
        "path": str(path),
        "tokens": folder.num_tokens,
        "documents": folder.num_documents,
        "files": [_describe_file(file) for file in folder.files],
        "tokenizer": tokenizer.name if tokenizer else None,
        "vocab_size": tokenizer.vocab_size if tokenizer else folder.vocab_size,
        "eos_id": tokenizer.eos_id if tokenizer else folder.eos_id,
        "utf8_bytes": folder.meta.get("utf8_bytes"),
        "largest_id": max(file.largest_id() for file in folder.files),
        "split": _describe_split(folder, split),
        "rows": _first_rows(folder.files, tokenizer, rows),
    }


def identify_tokens(folder: TokenFolder) -> str:
    """Say in one line which text this is: how much, of which files in which order, and its digits.

    The same line means the same text but for ids that `fingerprint` does not read.
    """
    names = folder.sources or [file.name for file in folder.files]
    named, more = ", ".join(names[:NAMED_SOURCES]), len(names) - NAMED_SOURCES
    parts = [
        f"{folder.num_tokens:,} tokens in {folder.num_documents:,} documents",
        f"made from {named}{f' and {more:,} more' if more > 0 else ''}",
    ]
    if folder.meta.get("tokenizer"):
        parts.append(f"tokenizer {folder.meta['tokenizer']}")
    return "; ".join([*parts, f"fingerprint {fingerprint(folder)}"])


def fingerprint(folder: TokenFolder) -> str:
    """Return 16 hex digits of a text: the lengths of all documents and ids spread over each file.

    Other documents or another order of them give other digits. At most 65,536 ids of a file are
    read, so that it takes no time for billions of tokens; the ids' type does not count.
    """
    digest = hashlib.sha256()
    for file in folder.files:
        stride = max(1, -(-file.num_tokens // FINGERPRINT_IDS))
        digest.update(np.asarray(file.lens, "<i8").tobytes())
        digest.update(np.asarray(file.ids[::stride], "<i8").tobytes())
    return digest.hexdigest()[:16]


def _describe_file(file: TokenFile) -> dict[str, Any]:
    return {
        "name": file.name,
        "ids_file": str(file.ids_file),
        "bytes": file.ids_file.stat().st_size,
        "dtype": file.ids.dtype.name,
        "tokens": file.num_tokens,
        "documents": file.num_documents,
        "mean_document": file.num_tokens / max(1, file.num_documents),
        "longest_document": int(file.lens.max(initial=0)),
    }


def _describe_split(folder: TokenFolder, split: str | Sequence[float]) -> dict[str, Any]:
    described: dict[str, Any] = {
        "weights": split if isinstance(split, str) else ",".join(str(part) for part in split)
    }
    for part in PARTS:
        spans = spans_of(folder, split, part)
        described["divided_by"] = divided_by(spans)
        described[part] = {
            "tokens": sum(span.stop - span.start for span in spans),
            "documents": sum(span.documents for span in spans),
        }
    return described


def _first_rows(
    files: Sequence[TokenFile], tokenizer: Tokenizer | None, rows: int
) -> list[dict[str, Any]]:
    """Decode the beginnings of the first documents."""
    described: list[dict[str, Any]] = []
    for file in files:
        for document in range(min(rows - len(described), file.num_documents)):
            start, stop = file.start_of(document), file.start_of(document + 1)
            ids = [int(token) for token in file.ids[start : min(stop, start + ROW_TOKENS)]]
            described.append(
                {
                    "document": document,
                    "file": file.name,
                    "tokens": stop - start,
                    "ids": ids,
                    "text": tokenizer.decode(ids, skip_special=False) if tokenizer else None,
                }
            )
    return described
