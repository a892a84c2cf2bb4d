"""Files that are whole or absent: written beside their place, fsynced, renamed.

Everything the program saves goes through here, so that `kill -9` or a full disk at any moment
leaves the previous state loadable.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from fastffn_cli.errors import UserError
from fastffn_cli.ui import size as format_size

MANIFEST = "manifest.json"
DIGEST_BYTES = 8 << 20  # of a file in memory while it is summed
# A full disk, an exceeded quota, or a file size limit: all mean "no room here".
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DiskFull(UserError):
    """There is no room for what should be saved; whatever was saved before is untouched."""

    title = "disk full"


@contextlib.contextmanager
def explain_full_disk(path: Path) -> Iterator[None]:
    """Turn the operating system's errors about room into `DiskFull`."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        free = shutil.disk_usage(existing_parent(path)).free
        raise DiskFull(
            f"no room to write {path} ({format_size(free)} free): {error.strerror}",
            hint="Free some space; what was saved before is whole and can be resumed.",
        ) from error


def make_folder(path: Path) -> None:
    """Make a folder and those above it, or find it there.

    Raises `DiskFull`, or `UserError` where the system does not allow it.
    """
    try:
        with explain_full_disk(path):
            path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{path} cannot be made: {error.strerror}", hint="Name another folder"
        ) from error


def existing_parent(path: Path) -> Path:
    """The nearest folder at or above `path` that exists."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def check_room(path: Path, needed: int) -> None:
    """Raise `DiskFull` before anything is written if `needed` bytes cannot fit under `path`."""
    free = shutil.disk_usage(existing_parent(path)).free
    if free < needed:
        raise DiskFull(
            f"{path} needs {format_size(needed)} and the disk has {format_size(free)} left",
            hint="Free some space; what was saved before is whole and can be resumed.",
        )


def write_file(path: Path, content: str | bytes) -> None:
    """Write a small file atomically: readers see the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    payload = content.encode() if isinstance(content, str) else content
    try:
        with explain_full_disk(path):
            with temporary.open("wb") as file:
                file.write(payload)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            sync_dir(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write one JSON value atomically, for people to read as well."""
    write_file(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


class Digests:
    """sha256 of files, computed on threads of their own: while others are written, or synced."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="digests")
        self._begun: dict[Path, Future[str]] = {}

    def begin(self, path: Path) -> None:
        """Begin with a file that is written to its end."""
        if path not in self._begun:
            self._begun[path] = self._threads.submit(sha256, path)

    def of(self, path: Path) -> str:
        """Return the digest of a file, now."""
        self.begin(path)
        return self._begun[path].result()

    def close(self) -> None:
        """Let no file be open any more."""
        self._threads.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def new_folder(
    final_dir: Path, *, manifest: bool = True, digests: Digests | None = None
) -> Iterator[Path]:
    """Give a temporary folder that becomes `final_dir`, whole and with a manifest, or vanishes.

    Without `manifest` the folder holds nothing of ours: other systems read it. `digests` may have
    begun with files that are complete.

    Raises `UserError` if `final_dir` exists: nothing is ever overwritten.
    """
    if final_dir.exists():
        raise UserError(f"{final_dir} exists already; nothing was overwritten")
    try:
        final_dir.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{final_dir} cannot be made: {error.strerror}") from error
    _remove_abandoned(final_dir)
    temporary = final_dir.with_name(f".{final_dir.name}.{os.getpid()}.tmp")
    remove_folder(temporary)
    temporary.mkdir()
    digests = digests or Digests()
    try:
        with explain_full_disk(final_dir):
            yield temporary
            paths = sorted(temporary.iterdir())
            if manifest:
                for path in paths:
                    digests.begin(path)  # the disk works meanwhile
            for path in paths:
                _sync_file(path)
            if manifest:
                write_manifest(temporary, digests)
            sync_dir(temporary)
            temporary.rename(final_dir)
            sync_dir(final_dir.parent)
    finally:
        digests.close()
        remove_folder(temporary)


def _remove_abandoned(final_dir: Path) -> None:
    """Delete what processes that were killed left of this very folder."""
    for leftover in final_dir.parent.glob(f".{glob.escape(final_dir.name)}.*.tmp"):
        owner = leftover.name.split(".")[-2]
        if owner.isdigit() and not _is_running(int(owner)):
            remove_folder(leftover)


def remove_leftovers(parent_dir: Path) -> None:
    """Delete temporary files and folders that a killed process left in `parent_dir`."""
    for leftover in parent_dir.glob(".*.tmp"):
        owner = leftover.name.split(".")[-2]
        if not owner.isdigit() or _is_running(int(owner)):
            continue
        if leftover.is_dir():
            remove_folder(leftover)
        else:
            leftover.unlink(missing_ok=True)


def remove_folder(path: Path) -> None:
    """Delete a folder so that a kill in between leaves no half of it under its own name."""
    if not path.exists():
        return
    doomed = path if path.name.startswith(".") else path.with_name(f".{path.name}.0.tmp")
    if doomed != path:
        path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def lock(file: IO[Any]) -> None:
    """Hold a file for this process until it is closed or the process ends, however it ends.

    Raises `BlockingIOError` if another process holds it. File systems without locks, and systems
    without `fcntl`, let everybody in.
    """
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return


def write_manifest(folder: Path, digests: Digests | None = None) -> None:
    """Record size and sha256 of every file in `folder`."""
    digests = digests or Digests()
    files = {
        path.name: {"size": path.stat().st_size, "sha256": digests.of(path)}
        for path in sorted(folder.iterdir())
    }
    write_json(folder / MANIFEST, {"format": 1, "files": files})


def damage(folder: Path, *, checksums: bool = False, unread: Collection[str] = ()) -> str | None:
    """Say what is wrong with a folder that has a manifest, or None when it is whole.

    Sizes are always compared; `checksums` also reads every byte, but for the files `unread`.
    """
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        expected = {str(name): (int(it["size"]), str(it["sha256"])) for name, it in files.items()}
    except FileNotFoundError:
        return f"{MANIFEST} is missing (an unfinished save)"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is not readable"
    for name, (length, digest) in expected.items():
        path = folder / name
        if Path(name).name != name or not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != length:
            return f"{name} has {path.stat().st_size} bytes instead of {length}"
        if checksums and name not in unread and sha256(path) != digest:
            return f"{name} does not match its sha256"
    return None


def sha256(path: Path) -> str:
    """Hex digest of a file's content.

    In large pieces: a thread needs the interpreter's lock between two of them, and a busy main
    thread lets it wait for milliseconds each time.
    """
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(min(DIGEST_BYTES, max(1, path.stat().st_size))))
    with path.open("rb", buffering=0) as file:
        while length := file.readinto(buffer):
            digest.update(buffer[:length])
    return digest.hexdigest()


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_dir(folder: Path) -> None:
    """Flush a folder's entries, so that a rename survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_running(pid: int) -> bool:
    if pid == 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid != os.getpid()
