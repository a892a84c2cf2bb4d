"""FleetX's token files: `NAME_ids.npy` and `NAME_idx.npz`, opened by memory map and checked.

`NAME_ids.npy` is one row of ids (uint16 or int32; other integer types are read too).
`NAME_idx.npz` holds `lens` (tokens of each document, in order) and `docs` (not needed here). The
older single file `NAME_ids.npz` with `ids` and `lens` is read as well, into memory. Nothing is
unpickled.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastffn_cli.errors import DataError

IDS_SUFFIX = "_ids.npy"
INDEX_SUFFIX = "_idx.npz"
LEGACY_SUFFIX = "_ids.npz"
META_FILE = "meta.json"
CHECK_TOKENS = 1 << 22


@dataclass(frozen=True)
class TokenFile:
    """One prefix: `ids` [tokens] (a memory map), `lens` [documents], `ends` [documents] int64.

    `ends[d]` is the position after the last token of document d.
    """

    name: str
    ids_file: Path
    ids: NDArray[np.integer]
    lens: NDArray[np.integer]
    ends: NDArray[np.int64]

    @property
    def num_tokens(self) -> int:
        """Tokens in this file."""
        return int(self.ids.shape[0])

    @property
    def num_documents(self) -> int:
        """Documents in this file."""
        return int(self.lens.shape[0])

    def start_of(self, document: int) -> int:
        """Position of the first token of a document; of the end for `num_documents`."""
        return 0 if document == 0 else int(self.ends[document - 1])

    def largest_id(self) -> int:
        """Read every id once and give the largest; -1 of an empty file."""
        largest = -1
        for start in range(0, self.num_tokens, CHECK_TOKENS):
            largest = max(largest, int(self.ids[start : start + CHECK_TOKENS].max()))
        return largest

    def check_ids(self, vocab_size: int) -> None:
        """Read every id once; DataError with the place of the first one outside the vocabulary."""
        for start in range(0, self.num_tokens, CHECK_TOKENS):
            chunk = np.asarray(self.ids[start : start + CHECK_TOKENS])
            wrong = (chunk < 0) | (chunk >= vocab_size)
            if not wrong.any():
                continue
            index = start + int(np.argmax(wrong))
            document = int(np.searchsorted(self.ends, index, side="right"))
            raise DataError(
                f"{self.ids_file}: token {index:,} (document {document:,}) has id "
                f"{int(self.ids[index])}, outside a vocabulary of {vocab_size:,}",
                hint="set Model.vocab_size to that of the tokenizer which made these files, or "
                "run fastffn prepare again with the model's tokenizer",
            )


@dataclass(frozen=True)
class TokenFolder:
    """The token files of one folder (or one prefix), in sorted order, with what is known of them.

    `meta` is `meta.json` as `prepare` wrote it, or {} beside files of other programs.
    """

    path: Path
    files: tuple[TokenFile, ...]
    meta: dict[str, Any]
    tokenizer_dir: Path | None

    @property
    def num_tokens(self) -> int:
        """Tokens in all files."""
        return sum(file.num_tokens for file in self.files)

    @property
    def num_documents(self) -> int:
        """Documents in all files."""
        return sum(file.num_documents for file in self.files)

    @property
    def vocab_size(self) -> int | None:
        """Vocabulary of the tokenizer, if `meta.json` tells it."""
        return self.meta.get("vocab_size")

    @property
    def sources(self) -> list[str]:
        """Names of the files of text, in their order; none if `meta.json` does not tell."""
        told = self.meta.get("sources")
        items = told if isinstance(told, list) else []
        return [PurePath(item["name"]).name for item in items if _has_name(item)]

    @property
    def eos_id(self) -> int | None:
        """Id of the end-of-text token, if `meta.json` tells it."""
        return self.meta.get("eos_id")


def open_tokens(path: Path, *, vocab_size: int | None = None) -> TokenFolder:
    """Open a prepared folder, a prefix (`data/corpus` of `data/corpus_ids.npy`) or an `_ids` file.

    With `vocab_size` every id is read and checked against it. DataError names the file and the
    place of whatever is missing, truncated, of the wrong type or inconsistent.
    """
    path = Path(path).expanduser()
    folder_dir, prefixes = _find_prefixes(path)
    files = tuple(_open_prefix(folder_dir, prefix) for prefix in prefixes)
    if vocab_size is not None:
        for file in files:
            file.check_ids(vocab_size)
    has_tokenizer = (folder_dir / "tokenizer.json").is_file()
    return TokenFolder(
        path=path,
        files=files,
        meta=_read_meta(folder_dir / META_FILE),
        tokenizer_dir=folder_dir if has_tokenizer else None,
    )


def _has_name(item: object) -> bool:
    """Whether this is an entry of `prepare`: a meta.json may be of another program."""
    return isinstance(item, dict) and isinstance(item.get("name"), str)


def _find_prefixes(path: Path) -> tuple[Path, list[str]]:
    """Give the folder and the sorted prefixes in it that `path` means."""
    suffixes = (IDS_SUFFIX, INDEX_SUFFIX, LEGACY_SUFFIX)
    if path.is_dir():
        prefixes = {
            file.name.removesuffix(suffix)
            for file in path.iterdir()
            for suffix in suffixes
            if file.name.endswith(suffix) and not file.name.startswith(".")
        }
        if prefixes:
            return path, sorted(prefixes)
        raise DataError(
            f"{path}: no token files (NAME{IDS_SUFFIX} + NAME{INDEX_SUFFIX}) in this folder",
            hint="make them from text: fastffn prepare TEXT --out DIR",
        )
    for suffix in suffixes:
        if path.name.endswith(suffix):
            return path.parent, [path.name.removesuffix(suffix)]
    if any(path.with_name(path.name + suffix).exists() for suffix in suffixes):
        return path.parent, [path.name]
    kind = "is a file, not a prepared folder" if path.exists() else "does not exist"
    raise DataError(
        f"{path}: {kind}", hint="make token files from text: fastffn prepare TEXT --out DIR"
    )


def _open_prefix(folder_dir: Path, prefix: str) -> TokenFile:
    """Open one prefix and check that ids and lengths belong together."""
    ids_file = folder_dir / (prefix + IDS_SUFFIX)
    index_file = folder_dir / (prefix + INDEX_SUFFIX)
    legacy_file = folder_dir / (prefix + LEGACY_SUFFIX)
    if not ids_file.exists() and not index_file.exists() and legacy_file.exists():
        arrays = _read_npz(legacy_file, ("ids", "lens"))
        ids, lens, ids_file, index_file = arrays["ids"], arrays["lens"], legacy_file, legacy_file
    else:
        for file, partner in ((ids_file, index_file), (index_file, ids_file)):
            if not file.exists():
                raise DataError(
                    f"{file} does not exist",
                    hint=f"it belongs to {partner.name}; copy it there too, or run prepare again",
                )
        ids = _map_ids(ids_file)
        lens = _read_npz(index_file, ("lens",))["lens"]
    _check_row(ids_file, "ids", ids)
    _check_row(index_file, "lens", lens)
    if lens.size and int(lens.min()) < 0:
        document = int(np.argmax(lens < 0))
        raise DataError(f"{index_file}: document {document:,} has length {int(lens[document])}")
    ends = np.cumsum(lens, dtype=np.int64)
    total = int(ends[-1]) if ends.size else 0
    if total != ids.shape[0]:
        past = int(np.searchsorted(ends, ids.shape[0], side="right"))
        place = f"; the ids end inside document {past:,}" if total > ids.shape[0] else ""
        raise DataError(
            f"{ids_file} has {ids.shape[0]:,} tokens, but the documents in {index_file.name} sum "
            f"to {total:,}{place}",
            hint="the two files are not of the same run: run fastffn prepare again",
        )
    return TokenFile(name=prefix, ids_file=ids_file, ids=ids, lens=lens, ends=ends)


def _map_ids(file: Path) -> NDArray[Any]:
    """Map an `.npy` file; DataError when its size is not what its header says."""
    try:
        with file.open("rb") as stream:
            version = np.lib.format.read_magic(stream)
            # 3.0 differs from 2.0 in the encoding of field names only, which a row of ids has not.
            read = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            shape, _, dtype = read(stream)
            header = stream.tell()
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}") from error
    except (ValueError, KeyError, EOFError) as error:
        raise DataError(f"{file}: not a whole .npy file ({error})") from error
    if dtype.hasobject:
        raise DataError(f"{file}: holds Python objects, not token ids")
    count = int(np.prod(shape, dtype=np.int64))
    expected, found = header + count * dtype.itemsize, file.stat().st_size
    if found != expected:
        place = ""
        if found < expected:
            place = f": it ends after token {max(0, found - header) // dtype.itemsize:,}"
        raise DataError(
            f"{file}: has {found:,} bytes, but its header promises {count:,} tokens = "
            f"{expected:,} bytes{place}",
            hint="the copy is incomplete: fetch it again, or run fastffn prepare again",
        )
    if count == 0:  # an empty file cannot be mapped
        return np.zeros(shape, dtype)
    return np.memmap(file, dtype=dtype, mode="r", offset=header, shape=shape)


def _read_npz(file: Path, keys: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    """Read the named arrays of an `.npz`; DataError names the file and the broken array."""
    key = ""
    try:
        with np.load(file, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise DataError(f"{file}: not an .npz archive")
            arrays = {}
            for key in keys:
                if key not in archive.files:
                    there = ", ".join(archive.files) or "nothing"
                    raise DataError(f"{file}: no array {key!r} in it (there is {there})")
                arrays[key] = archive[key]
            return arrays
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        place = f", array {key!r}" if key else ""
        raise DataError(f"{file}{place}: not a whole .npz archive ({error})") from error


def _check_row(file: Path, what: str, array: NDArray[Any]) -> None:
    if array.ndim != 1:
        raise DataError(f"{file}: {what} has shape {list(array.shape)}, expected one row")
    if array.dtype.kind not in "iu":
        raise DataError(f"{file}: {what} has type {array.dtype}, expected integers")


def _read_meta(file: Path) -> dict[str, Any]:
    """Read `meta.json`; {} if absent. DataError if broken or of a newer format."""
    if not file.is_file():
        return {}
    try:
        meta = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file}: not JSON ({error})") from error
    if not isinstance(meta, dict):
        raise DataError(f"{file}: not a JSON object")
    for key in ("vocab_size", "eos_id"):
        if not isinstance(meta.get(key), int | None):
            raise DataError(f"{file}: {key} is {meta[key]!r}, expected a whole number")
    return meta
