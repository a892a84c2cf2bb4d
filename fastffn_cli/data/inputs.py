"""The files that `prepare` reads: which ones, of what kind, in what order."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fastffn_cli.errors import DataError
from fastffn_cli.interop.mindrecord import INDEX_SUFFIX, data_file_of, looks_like_mindrecord

TEXT = "text"
JSON_LINES = "jsonl"
MINDRECORD = "mindrecord"
KINDS = {".txt": TEXT, ".jsonl": JSON_LINES}
GZIP = ".gz"

# What is certainly no plain text gets told how to become it, when it is named on the command line.
REMEDIES = {
    ".json": "one JSON object a line is read: rename it to .jsonl if it is that",
    ".zst": "unpack it first: zstd -d FILE",
    ".xz": "unpack it first: xz -d FILE",
    ".bz2": "unpack it first: bzip2 -d FILE",
    ".zip": "unpack it first: unzip FILE",
    ".tar": "unpack it first: tar -xf FILE",
    ".tgz": "unpack it first: tar -xzf FILE",
    ".parquet": "export the text column as .jsonl first",
    ".arrow": "export the text column as .jsonl first",
    ".csv": "export the text column as .jsonl first",
    ".tsv": "export the text column as .jsonl first",
    ".pdf": "extract the text first: pdftotext FILE",
    ".npy": "these are token ids already: give the folder to pretrain as Data.dataset.input_dir",
    ".npz": "these are token ids already: give the folder to pretrain as Data.dataset.input_dir",
    ".mindrecord": "it does not begin as a MindRecord: unpack it (gunzip FILE) or fetch it again",
    ".bin": "convert it to .txt or .jsonl first",
    ".idx": "convert it to .txt or .jsonl first",
}


@dataclass(frozen=True)
class SourceFile:
    """One input file: `name` as the user wrote it, `size` in bytes.

    `kind` is TEXT, JSON_LINES or MINDRECORD.
    """

    path: Path
    name: str
    kind: str
    compressed: bool
    size: int


@dataclass(frozen=True)
class Inputs:
    """The files to read, in order, and what the user should know about the choice."""

    files: tuple[SourceFile, ...]
    notices: tuple[str, ...] = field(default=())

    @property
    def size(self) -> int:
        """Bytes on disk of all files."""
        return sum(file.size for file in self.files)


def find_inputs(paths: Sequence[Path]) -> Inputs:
    """Find the files of `paths`: files as they are named, folders recursively in sorted order.

    In folders, hidden files and other extensions are left out (the latter with a notice). A file
    named by the user without a known extension is read as plain text. A file that comes twice is
    read once. A MindRecord is known by its content. DataError: a path that does not exist, is none
    of these, or nothing to read at all.
    """
    files: list[SourceFile] = []
    notices: list[str] = []
    seen: set[Path] = set()
    for path in paths:
        if path.is_dir():
            found, skipped = _walk(path)
            if skipped:
                notices.append(_skipped_notice(path, skipped))
        elif path.is_file():
            found = [_open_named(path, notices)]
        else:
            raise DataError(f"{path}: there is no such file or folder")
        for file in found:
            real = file.path.resolve()
            if real in seen:
                notices.append(f"{file.name} is named twice and read once")
                continue
            seen.add(real)
            files.append(file)
    if not files:
        shown = ", ".join(str(path) for path in paths) or "nothing"
        raise DataError(f"no .txt or .jsonl files (also .gz) and no MindRecord in {shown}")
    return Inputs(tuple(files), tuple(notices))


def _walk(folder_dir: Path) -> tuple[list[SourceFile], list[str]]:
    """Give the readable files below a folder and the names of the others, both sorted."""
    found: list[SourceFile] = []
    skipped: list[str] = []
    for root, folders, names in os.walk(folder_dir):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.startswith("."):
                continue
            path = Path(root) / name
            kind, compressed = _classify(path)
            if kind is None:
                if not _is_index(path):
                    skipped.append(str(path.relative_to(folder_dir)))
            else:
                found.append(SourceFile(path, str(path), kind, compressed, path.stat().st_size))
    found.sort(key=lambda file: file.path.relative_to(folder_dir).parts)
    return found, sorted(skipped)


def _classify(path: Path) -> tuple[str | None, bool]:
    """Give (kind or None, compressed): by the extension, in any case, or else by the content."""
    name = path.name.lower()
    compressed = name.endswith(GZIP)
    kind = KINDS.get(Path(name.removesuffix(GZIP)).suffix)
    if kind is None and looks_like_mindrecord(path):
        return MINDRECORD, False
    return kind, compressed


def _is_index(path: Path) -> bool:
    """Whether a file is the index of a MindRecord that lies beside it."""
    return path.suffix == INDEX_SUFFIX and looks_like_mindrecord(path.with_suffix(""))


def _open_named(path: Path, notices: list[str]) -> SourceFile:
    """Take a file that the user named; unknown extensions count as plain text, with a notice."""
    kind, compressed = _classify(path)
    if kind is None:
        suffix = Path(path.name.lower().removesuffix(GZIP)).suffix
        if suffix in REMEDIES:
            raise DataError(f"{path}: {suffix} files are not read", hint=REMEDIES[suffix])
        data_file = data_file_of(path)
        if data_file is not None:
            raise DataError(
                f"{path}: an SQLite database, as it lies beside a MindRecord",
                hint=f"name the MindRecord itself: {data_file}",
            )
        notices.append(f"{path} is read as plain text, one document")
        kind = TEXT
    return SourceFile(path, str(path), kind, compressed, path.stat().st_size)


def _skipped_notice(folder_dir: Path, skipped: Sequence[str]) -> str:
    shown = ", ".join(skipped[:5]) + (", ..." if len(skipped) > 5 else "")
    count = f"{len(skipped)} file" + ("s" if len(skipped) > 1 else "")
    return f"{folder_dir}: {count} with another extension than .txt or .jsonl left out: {shown}"
