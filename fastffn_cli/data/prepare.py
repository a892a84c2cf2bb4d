"""Text, or MindRecord files, to token files: `fastffn prepare`.

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
from typing import Any, Protocol

import numpy as np

from fastffn_cli import ui
from fastffn_cli.data.encoding import EncodedBatch
from fastffn_cli.data.inputs import MINDRECORD, Inputs, find_inputs
from fastffn_cli.data.progress import ByteProgress
from fastffn_cli.data.record_source import RecordSource
from fastffn_cli.data.text_source import TextSource
from fastffn_cli.data.token_files import META_FILE
from fastffn_cli.data.token_writer import TokenWriter
from fastffn_cli.data.tokenizer import Tokenizer, build_tokenizer
from fastffn_cli.errors import EXIT_SIGINT, EXIT_SIGTERM, DataError, Interrupted

FORMAT = "fastffn-tokens"
FORMAT_VERSION = 1
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
DEFAULT_TOKENIZER = "train:8000"


@dataclass(frozen=True)
class Request:
    """What to prepare: the options of the command.

    `tokenizer` None: for text `DEFAULT_TOKENIZER`, for MindRecords none.
    """

    inputs: tuple[Path, ...]
    out_dir: Path
    tokenizer: str | None = None
    json_key: str = "text"
    name: str | None = None
    workers: int = 1
    eos_token: str | None = None
    eos_id: int | None = None


class TokenSource(Protocol):
    """Where token ids come from.

    `tokenizer` made them, if it is known; `least_tokens` tells how many there are at least.
    """

    label: str
    tokenizer: Tokenizer | None
    dtype: np.dtype
    least_tokens: int

    def batches(self) -> Iterator[EncodedBatch]:
        """Yield all ids, as `dtype`, in order."""

    def finish(self, num_documents: int) -> dict[str, Any]:
        """Give what `meta.json` tells of this source, when all is written."""


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
        source = _open_source(request, sources)
        meta = _write_tokens(name, sources, source, part_dir)
        if source.tokenizer is not None:
            source.tokenizer.save(part_dir)
        text = json.dumps(meta, indent=2, ensure_ascii=False) + "\n"
        (part_dir / META_FILE).write_text(text, encoding="utf-8")
        _publish(part_dir, out_dir)
    return meta


def _open_source(request: Request, sources: Inputs) -> TokenSource:
    """Make the source of ids that the kind of the inputs asks for."""
    records = [file.name for file in sources.files if file.kind == MINDRECORD]
    if not records:
        if request.eos_id is not None:
            raise DataError(
                "--eos-id is for MindRecord files; a tokenizer knows its own end-of-text",
                hint="--eos-token TOKEN names another one",
            )
        tokenizer = build_tokenizer(
            request.tokenizer or DEFAULT_TOKENIZER,
            request.inputs,
            json_key=request.json_key,
            eos_token=request.eos_token,
        )
        return TextSource(sources, tokenizer, json_key=request.json_key, workers=request.workers)
    texts = [file.name for file in sources.files if file.kind != MINDRECORD]
    if texts:
        raise DataError(
            f"MindRecord files hold token ids, they are not mixed with text: {records[0]}, "
            f"{texts[0]}",
            hint="prepare the two into folders of their own",
        )
    if request.tokenizer is None and request.eos_token is not None:
        raise DataError(
            f"--eos-token {request.eos_token}: {records[0]} holds token ids, and no --tokenizer "
            "is named",
            hint="add --tokenizer SPEC, or give the id itself: --eos-id N",
        )
    if request.tokenizer is None:
        return RecordSource(sources, None, request.eos_id)
    if request.tokenizer.startswith("train:"):
        raise DataError(
            f"tokenizer {request.tokenizer!r}: {records[0]} holds token ids, there is nothing to "
            "train on",
            hint="name the tokenizer that made the ids, or leave --tokenizer out",
        )
    tokenizer = build_tokenizer(request.tokenizer, eos_token=request.eos_token)
    return RecordSource(sources, tokenizer, request.eos_id)


def _write_tokens(
    name: str, sources: Inputs, source: TokenSource, part_dir: Path
) -> dict[str, Any]:
    """Write all ids into the folder and give their meta data."""
    _check_space(part_dir, source)
    writer = TokenWriter(part_dir, name, source.dtype)
    try:
        with ByteProgress(source.label, sources.size) as bar:
            for batch in source.batches():
                writer.write(batch)
                bar.update(batch.bytes_read)
        told = source.finish(writer.num_documents)
        writer.finish()
    finally:
        writer.close()
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "name": name,
        "dtype": source.dtype.name,
        "tokens": writer.num_tokens,
        "documents": writer.num_documents,
        **told,
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


def _check_space(part_dir: Path, source: TokenSource) -> None:
    """Stop before the work when the disk cannot possibly hold the result."""
    needed, free = source.least_tokens * source.dtype.itemsize, shutil.disk_usage(part_dir).free
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
