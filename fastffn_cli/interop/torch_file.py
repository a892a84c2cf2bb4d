"""What `torch.save` writes, read without torch: a dictionary of tensors, values where they lie.

Two containers. Since torch 1.6 a zip archive with uncompressed entries: NAME/data.pkl, the raw
values NAME/data/KEY of each storage, NAME/byteorder. Before: pickles one after the other (magic
number, protocol, system, object, keys), then each storage with its length in front. Formats: torch
2.13 `serialization.py`, `_utils.py`, `csrc/generic/serialization.cpp`.

The pickle is read by `pickled`, so that nothing in a file is run. Every tensor is checked to lie in
its storage and every storage in the file before anything is read.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fastffn_cli.engine.tensor_file import RawReader, StoredTensor, item_bytes, widen_bfloat16
from fastffn_cli.errors import CheckpointError
from fastffn_cli.interop.pickled import load_pickle
from fastffn_cli.interop.torch_pickle import ALLOWED, Storage, View, named_views, storage_of

ZIP_MAGIC = b"PK\x03\x04"
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
LARGEST_PICKLE = 64 << 20  # bytes; a model of a thousand tensors takes a few hundred kB
LOCAL_HEADER = 30  # bytes of a zip entry in front of its name
SHOWN = 10


@dataclass(frozen=True)
class _Places:
    """Where storages lie: byte of the first value and bytes there, by key."""

    storages: Mapping[str, tuple[int, int]]
    big_endian: bool


def is_torch_file(file: Path) -> bool:
    """Whether a file begins as one of `torch.save`; never raises."""
    if not file.is_file():
        return False
    try:
        with file.open("rb") as stream:
            head = stream.read(32)
        if head.startswith(ZIP_MAGIC):
            with zipfile.ZipFile(file) as archive:
                return _pickle_name(archive) is not None
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return False
    magic = LEGACY_MAGIC.to_bytes(10, "little")
    return head[:1] == b"\x80" and b"\x8a\x0a" + magic in head


def open_torch(file: Path) -> dict[str, StoredTensor]:
    """Name the tensors of a `torch.save` of a dictionary of tensors, such as a `state_dict`.

    Tensors that share values are the same object. Raises `CheckpointError` naming the file for
    other content, for names that no dictionary of tensors needs, and for what is damaged.
    """
    try:
        with file.open("rb") as stream:
            zipped = stream.read(len(ZIP_MAGIC)) == ZIP_MAGIC
            stream.seek(0)
            content, places = _read_zip(file) if zipped else _read_legacy(file, stream)
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError) as error:
        raise CheckpointError(f"{file} is damaged: {error}") from error
    views = named_views(file, content)
    problems = []
    for name, view in views.items():
        problem = _misfit(view, places)
        if problem:
            problems.append(f"{name}: {problem}")
    if problems:
        raise CheckpointError(f"{file} is damaged:\n" + "\n".join(problems[:SHOWN]))
    opened: dict[View, StoredTensor] = {}
    for view in views.values():
        if view not in opened:
            reader = _reader(file, view, places)
            opened[view] = StoredTensor(view.shape, view.storage.dtype, reader)
    return {name: opened[view] for name, view in views.items()}


# -- where the values are ------------------------------------------------------------------------


def _pickle_name(archive: zipfile.ZipFile) -> str | None:
    """Give the name of the archive's data.pkl, which lies in the one folder of the archive."""
    names = [name for name in archive.namelist() if name.count("/") == 1]
    return next((name for name in names if name.endswith("/data.pkl")), None)


def _read_zip(file: Path) -> tuple[Any, _Places]:
    with zipfile.ZipFile(file) as archive, file.open("rb") as stream:
        pickle_name = _pickle_name(archive)
        if pickle_name is None:
            raise CheckpointError(f"{file} is a zip archive without data.pkl: not from torch.save")
        folder = pickle_name.removesuffix("data.pkl")
        entries = _entries(file, archive, stream)
        order = _content(stream, entries, f"{folder}byteorder") or b"little"
        if order not in (b"little", b"big"):
            raise CheckpointError(f"{file} is damaged: its byte order is {order[:20]!r}")
        pickled = _content(stream, entries, pickle_name) or b""
        content = load_pickle(
            io.BytesIO(pickled), str(file), allowed=ALLOWED, persistent_load=storage_of
        )
        data = f"{folder}data/"
        storages = {
            name.removeprefix(data): place
            for name, place in entries.items()
            if name.startswith(data)
        }
        return content, _Places(storages, order == b"big")


def _entries(file: Path, archive: zipfile.ZipFile, stream: BinaryIO) -> dict[str, tuple[int, int]]:
    """Give the place and length of the bytes of every entry, uncompressed as torch leaves them."""
    places: dict[str, tuple[int, int]] = {}
    size = file.stat().st_size
    for info in archive.infolist():
        if info.filename in places:
            raise CheckpointError(f"{file} is damaged: {info.filename} is there twice")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise CheckpointError(f"{file}: {info.filename} is compressed; torch.save never does")
        stream.seek(info.header_offset)
        header = stream.read(LOCAL_HEADER)
        if len(header) != LOCAL_HEADER or not header.startswith(ZIP_MAGIC):
            raise CheckpointError(f"{file} is damaged: {info.filename} is not where it should be")
        lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:], "little")
        start = info.header_offset + LOCAL_HEADER + lengths
        if start + info.file_size > size:
            raise CheckpointError(f"{file} is truncated: it ends inside {info.filename}")
        places[info.filename] = (start, info.file_size)
    return places


def _content(stream: BinaryIO, entries: Mapping[str, tuple[int, int]], name: str) -> bytes | None:
    if name not in entries:
        return None
    start, length = entries[name]
    if length > LARGEST_PICKLE:
        raise ValueError(f"{name} has more than {LARGEST_PICKLE >> 20} MiB")
    stream.seek(start)
    return stream.read(length)


def _read_legacy(file: Path, stream: BinaryIO) -> tuple[Any, _Places]:
    source = str(file)
    if load_pickle(stream, source) != LEGACY_MAGIC:
        raise CheckpointError(f"{file} is a pickle, and not one of torch.save")
    if load_pickle(stream, source) != LEGACY_PROTOCOL:
        raise CheckpointError(f"{file} is of another protocol than {LEGACY_PROTOCOL}")
    system = load_pickle(stream, source)
    if not isinstance(system, dict) or not isinstance(system.get("little_endian"), bool):
        raise CheckpointError(f"{file} is damaged: it does not tell its byte order")
    found: dict[str, Storage] = {}

    def note_storage(persistent_id: Any) -> Storage:
        storage = storage_of(persistent_id)
        known = found.setdefault(storage.key, storage)
        if known.dtype != storage.dtype:
            raise ValueError(f"storage {storage.key[:40]!r} has two types")
        return storage

    content = load_pickle(stream, source, allowed=ALLOWED, persistent_load=note_storage)
    keys = load_pickle(stream, source)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise CheckpointError(f"{file} is damaged: it has no list of storages")
    big_endian = not system["little_endian"]
    return content, _Places(_walk_storages(file, stream, keys, found), big_endian)


def _walk_storages(
    file: Path, stream: BinaryIO, keys: list[str], found: Mapping[str, Storage]
) -> dict[str, tuple[int, int]]:
    """Step over the storages behind a legacy pickle: a count of values (int64), then the values."""
    size = file.stat().st_size
    places: dict[str, tuple[int, int]] = {}
    place = stream.tell()
    for key in keys:
        if key not in found or key in places:
            raise CheckpointError(f"{file} is damaged: storage {key[:40]!r} is of no tensor")
        stream.seek(place)
        count = int.from_bytes(stream.read(8), "little", signed=True)
        length = count * item_bytes(found[key].dtype)
        if count < 0 or place + 8 + length > size:
            raise CheckpointError(f"{file} is truncated: it ends inside a storage")
        places[key] = (place + 8, length)
        place += 8 + length
    return places


def _misfit(view: View, places: _Places) -> str | None:
    """Say what is wrong with a tensor that does not lie in its storage, or the storage not here."""
    storage = view.storage
    if storage.key not in places.storages:
        return "its values are not in the file"
    held = places.storages[storage.key][1]
    if (storage.start + storage.count) * item_bytes(storage.dtype) > held:
        return f"its storage of {storage.count} values is longer than the file has it"
    if view.size > storage.count or view.offset + view.extent > storage.count:
        return f"{list(view.shape)} is more than the {storage.count} values of its storage"
    return None


def _reader(file: Path, view: View, places: _Places) -> Callable[[], np.ndarray]:
    storage = view.storage
    start = places.storages[storage.key][0]
    place = start + (storage.start + view.offset) * item_bytes(storage.dtype)
    if view.contiguous and not places.big_endian:
        return RawReader(file, place, view.shape, storage.dtype)
    half = storage.dtype == "bfloat16"
    read_run = RawReader(file, place, (view.extent,), "uint16" if half else storage.dtype)

    def read() -> np.ndarray:
        run = read_run()
        if places.big_endian:
            run = run.byteswap()
        steps = tuple(stride * run.itemsize for stride in view.strides)
        array = np.lib.stride_tricks.as_strided(run, view.shape, steps, writeable=False)
        array = np.array(array, order="C")
        return widen_bfloat16(array) if half else array

    return read
