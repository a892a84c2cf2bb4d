"""Writes `NAME_ids.npy` and `NAME_idx.npz` in constant memory, whatever their size."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import IO

import numpy as np

from fastffn_cli.data.encoding import EncodedBatch
from fastffn_cli.data.token_files import IDS_SUFFIX, INDEX_SUFFIX
from fastffn_cli.errors import DataError

HEADER_BYTES = 128
COPY_ITEMS = 1 << 20
LONGEST_DOCUMENT = 2**31 - 1


def ids_dtype(vocab_size: int) -> np.dtype:
    """Give the type of stored ids by FleetX's rule, so that it reads the files too."""
    return np.dtype("<u2" if vocab_size < 65535 else "<i4")


class TokenWriter:
    """Appends ids and document lengths; `finish` completes the two files.

    The header of the ids is written last, when their number is known. Lengths wait in a file of
    their own, because there can be as many documents as one likes.
    """

    def __init__(self, folder_dir: Path, name: str, dtype: np.dtype) -> None:
        self.dtype = dtype
        self.num_tokens = 0
        self.num_documents = 0
        self._open_length = 0  # tokens so far of a document whose end has not come yet
        self._ids_file = folder_dir / (name + IDS_SUFFIX)
        self._index_file = folder_dir / (name + INDEX_SUFFIX)
        self._lens_file = folder_dir / (name + "_lens.part")
        self._ids: IO[bytes] = self._ids_file.open("wb")
        self._lens: IO[bytes] = self._lens_file.open("wb")
        self._ids.write(b"\0" * HEADER_BYTES)

    def write(self, batch: EncodedBatch) -> None:
        """Append one batch. DataError: a document of more tokens than the format can count."""
        self._ids.write(batch.ids.tobytes())
        self.num_tokens += int(batch.ids.shape[0])
        # Sum the pieces of each document: the first one may have begun in an earlier batch.
        sums = np.concatenate([[0], np.cumsum(batch.lens)])
        ends = sums[1:][batch.last]
        lens = np.diff(ends, prepend=0)
        if lens.size:
            lens[0] += self._open_length
            self._open_length = int(sums[-1] - ends[-1])
        else:
            self._open_length += int(sums[-1])
        longest = max(self._open_length, int(lens.max(initial=0)))
        if longest > LONGEST_DOCUMENT:
            raise DataError(
                f"document {self.num_documents:,} has more than {LONGEST_DOCUMENT:,} tokens, which "
                "the index cannot count",
                hint="divide the file into several",
            )
        self._lens.write(lens.astype("<i4").tobytes())
        self.num_documents += int(lens.size)

    def finish(self) -> None:
        """Write header and index, and flush everything to the disk."""
        self._ids.seek(0)
        self._ids.write(npy_header(self.dtype, self.num_tokens))
        self._ids.flush()
        os.fsync(self._ids.fileno())
        self.close()
        with self._index_file.open("wb") as stream:
            # Stored, not compressed, with fixed dates: the same text gives the same bytes.
            with zipfile.ZipFile(stream, "w") as archive:
                self._add_lens(archive)
                self._add_docs(archive)
            stream.flush()
            os.fsync(stream.fileno())
        self._lens_file.unlink()

    def _add_lens(self, archive: zipfile.ZipFile) -> None:
        with archive.open("lens.npy", "w", force_zip64=True) as member:
            member.write(npy_header(np.dtype("<i4"), self.num_documents))
            with self._lens_file.open("rb") as lens:
                while portion := lens.read(COPY_ITEMS):
                    member.write(portion)

    def _add_docs(self, archive: zipfile.ZipFile) -> None:
        """Add the cumulative number of entries of `lens` a document: here one each."""
        count = self.num_documents + 1
        with archive.open("docs.npy", "w", force_zip64=True) as member:
            member.write(npy_header(np.dtype("<i8"), count))
            for start in range(0, count, COPY_ITEMS):
                numbers = np.arange(start, min(start + COPY_ITEMS, count), dtype="<i8")
                member.write(numbers.tobytes())

    def close(self) -> None:
        """Close the files, finished or not."""
        self._ids.close()
        self._lens.close()


def npy_header(dtype: np.dtype, count: int) -> bytes:
    """Give the `HEADER_BYTES` bytes before a row of `count` items in the .npy format 1.0."""
    text = f"{{'descr': '{dtype.str}', 'fortran_order': False, 'shape': ({count},), }}"
    body = text.encode("latin1").ljust(HEADER_BYTES - 11) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(body).to_bytes(2, "little") + body
