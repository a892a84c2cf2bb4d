"""Text to token files: `fastffn prepare`.

Everything is written into a hidden folder beside the output, which takes the output's name when it
is whole and on the disk. Until then there is no output, whatever happens; afterwards all of it.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from fastffn_cli import ui
from fastffn_cli.data.cutting import Cutter
from fastffn_cli.data.encoding import Reader, encode_batches
from fastffn_cli.data.inputs import Inputs, find_inputs
from fastffn_cli.data.progress import ByteProgress
from fastffn_cli.data.token_files import META_FILE
from fastffn_cli.data.token_writer import TokenWriter
from fastffn_cli.data.tokenizer import Tokenizer, build_tokenizer
from fastffn_cli.errors import EXIT_SIGINT, EXIT_SIGTERM, DataError, Interrupted

FORMAT = "fastffn-tokens"
FORMAT_VERSION = 1
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
# Text of one token, in bytes, in the most compact vocabularies: disk needed at the very least.
BYTES_A_TOKEN = 8


@dataclass(frozen=True)
class Request:
    """What to prepare: the options of the command."""

    inputs: tuple[Path, ...]
    out_dir: Path
    tokenizer: str
    json_key: str = "text"
    name: str | None = None
    workers: int = 1
    eos_token: str | None = None


def prepare(request: Request) -> dict[str, Any]:
    """Make the token files of a request and give what `meta.json` then holds.

    DataError: unreadable input, an output folder that is there already, a full disk. Interrupted:
    Ctrl-C or SIGTERM. In each case no output folder exists afterwards.
    """
    out_dir = request.out_dir
    name = request.name or out_dir.resolve().name
    _check_output(out_dir, name)
    sources = find_inputs(request.inputs)
    for notice in sources.notices:
        ui.notice(notice)
    with _stop_on_signals(), _disk_errors(out_dir), _partial_folder(out_dir) as part_dir:
        tokenizer = build_tokenizer(
            request.tokenizer,
            request.inputs,
            json_key=request.json_key,
            eos_token=request.eos_token,
        )
        meta = _write_tokens(request, name, sources, tokenizer, part_dir)
        tokenizer.save(part_dir)
        text = json.dumps(meta, indent=2, ensure_ascii=False) + "\n"
        (part_dir / META_FILE).write_text(text, encoding="utf-8")
        _publish(part_dir, out_dir)
    return meta


def _write_tokens(
    request: Request, name: str, sources: Inputs, tokenizer: Tokenizer, part_dir: Path
) -> dict[str, Any]:
    """Encode all sources into the folder and give their meta data."""
    # FleetX's rule, so that it reads the files too.
    dtype = np.dtype("<u2" if tokenizer.vocab_size < 65535 else "<i4")
    _check_space(part_dir, sources, tokenizer, dtype)
    cutter = Cutter(tokenizer)
    reader = Reader(sources, request.json_key, cutter)
    writer = TokenWriter(part_dir, name, dtype)
    utf8_bytes = 0
    try:
        with ByteProgress("encoding", sources.size) as bar:
            for batch in encode_batches(reader, tokenizer, workers=request.workers, dtype=dtype):
                writer.write(batch)
                utf8_bytes += batch.utf8_bytes
                bar.update(batch.bytes_read)
        if writer.num_documents == 0:
            raise DataError("there is no text in the input: every document is empty")
        writer.finish()
    finally:
        writer.close()
    if reader.empty_documents:
        plural = "" if reader.empty_documents == 1 else "s"
        ui.notice(f"{reader.empty_documents:,} empty document{plural} left out")
    if cutter.forced:
        ui.notice(
            f"{cutter.forced:,} very long stretches without a blank were cut between two tokens"
        )
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "name": name,
        "dtype": dtype.name,
        "tokens": writer.num_tokens,
        "documents": writer.num_documents,
        "empty_documents": reader.empty_documents,
        "utf8_bytes": utf8_bytes,
        "tokenizer": tokenizer.name,
        "vocab_size": tokenizer.vocab_size,
        "eos_token": tokenizer.eos_token,
        "eos_id": tokenizer.eos_id,
        "json_key": request.json_key,
        "sources": [{"name": file.name, "bytes": file.size} for file in sources.files],
    }


def _check_output(out_dir: Path, name: str) -> None:
    """Refuse to write over anything."""
    if not name or "/" in name or name.startswith("."):
        raise DataError(f"name {name!r} cannot be the beginning of a file name")
    if out_dir.is_dir() and not any(out_dir.iterdir()):
        return
    if out_dir.exists() or out_dir.is_symlink():
        raise DataError(
            f"{out_dir} is there already, and is never overwritten",
            hint=f"choose another --out, or remove it first: rm -r {out_dir}",
        )


def _check_space(part_dir: Path, sources: Inputs, tokenizer: Tokenizer, dtype: np.dtype) -> None:
    """Stop before the work when the disk cannot possibly hold the result."""
    tokens = sources.size if tokenizer.is_bytes else sources.size // BYTES_A_TOKEN
    needed, free = tokens * dtype.itemsize, shutil.disk_usage(part_dir).free
    if needed > free:
        raise DataError(
            f"{part_dir.parent}: {ui.size(free)} free, but the token files need at least "
            f"{ui.size(needed)}",
            hint="free some space, or choose --out on another disk",
        )


@contextmanager
def _partial_folder(out_dir: Path) -> Iterator[Path]:
    """Give a hidden folder beside the output, removed if the work does not come to its end."""
    parent_dir = out_dir.resolve().parent
    parent_dir.mkdir(parents=True, exist_ok=True)
    stem = f".{out_dir.resolve().name}.partial-"
    for left_over in sorted(parent_dir.glob(f"{stem}*")):
        ui.notice(f"a prepare that was killed left its unfinished files: rm -r {left_over}")
    part_dir = parent_dir / f"{stem}{os.getpid()}"
    part_dir.mkdir()
    try:
        yield part_dir
    finally:
        shutil.rmtree(part_dir, ignore_errors=True)


def _publish(part_dir: Path, out_dir: Path) -> None:
    """Flush the small files and give the folder its final name in one step."""
    for file in part_dir.iterdir():
        _fsync(file)
    _fsync(part_dir)
    target_dir = out_dir.resolve()
    try:
        part_dir.rename(target_dir)  # replaces an empty folder, and nothing else
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise DataError(f"{out_dir} came into being meanwhile; nothing was written") from error
        raise
    _fsync(target_dir.parent)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _disk_errors(out_dir: Path) -> Iterator[None]:
    """Turn a full or unwritable disk into a message."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            raise DataError(
                f"no space left for {out_dir} ({error.strerror}); nothing was kept",
                hint="free some space, or choose --out on another disk",
            ) from error
        if error.errno in UNWRITABLE:
            raise DataError(
                f"cannot write {error.filename or out_dir}: {error.strerror}"
            ) from error
        raise


@contextmanager
def _stop_on_signals() -> Iterator[None]:
    """Raise Interrupted on Ctrl-C and SIGTERM, so that the partial folder is removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    codes = {signal.SIGINT: EXIT_SIGINT, signal.SIGTERM: EXIT_SIGTERM}

    def stop(number: int, frame: FrameType | None) -> None:
        raise Interrupted(
            "prepare was stopped; nothing was written", exit_code=codes[signal.Signals(number)]
        )

    before: dict[signal.Signals, Callable[..., Any] | int | None] = {
        number: signal.signal(number, stop) for number in codes
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
