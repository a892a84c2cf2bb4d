"""Builds the imitated npu (device.cc says what it is) once for an installed paddle.

The library is tied to the exact wheel, so it is never committed: it is compiled where the tests
run, and kept in the user's cache under a name made from the wheel, the compiler and the sources.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

SOURCES_DIR = Path(__file__).parent
OPERATORS_DIR = SOURCES_DIR / "operators"
LIBRARY, OPERATORS_LIBRARY = "libpaddle-custom-npu.so", "libnpu-operators.so"
# -w: the warnings are those of Paddle's headers, thousands of lines of them.
COMPILE_FLAGS = ("-std=c++17", "-O1", "-w", "-fPIC", "-DPADDLE_WITH_CUSTOM_DEVICE")
PADDLE_LIBRARIES = ("libphi_core.so", "libphi.so", "libcommon.so", "libpaddle.so")


class CannotBuild(Exception):
    """There is no compiler, no paddle, or a system without shared memory as Linux has it."""


def build_plugin() -> Path:
    """Return the folder for `CUSTOM_DEVICE_ROOT`; compiles only what is not in the cache.

    Processes that want it at the same time wait for the first one. Raises `CannotBuild` where it
    cannot be built, and `RuntimeError` with the compiler's words where it should be but is not.
    """
    compiler, paddle_dir = find_compiler(), find_paddle()
    folder = cache_dir() / f"npu-{fingerprint(compiler, paddle_dir)}"
    folder.mkdir(parents=True, exist_ok=True)
    # Beside the folder: Paddle opens every library in it.
    with locked(folder.with_suffix(".lock")):
        if not (folder / LIBRARY).exists():
            compile_library(compiler, paddle_dir, SOURCES_DIR, folder / LIBRARY)
    return folder


def build_operators() -> Path:
    """Return such a folder with a library of custom operators beside the plugin; raises as that."""
    compiler, paddle_dir, plugin_dir = find_compiler(), find_paddle(), build_plugin()
    own = fingerprint(compiler, paddle_dir, OPERATORS_DIR)
    folder = plugin_dir.with_name(f"{plugin_dir.name}-{own}")
    folder.mkdir(exist_ok=True)
    with locked(folder.with_suffix(".lock")):
        if not (folder / LIBRARY).exists():
            os.link(plugin_dir / LIBRARY, folder / LIBRARY)
        if not (folder / OPERATORS_LIBRARY).exists():
            compile_library(compiler, paddle_dir, OPERATORS_DIR, folder / OPERATORS_LIBRARY)
    return folder


def find_compiler() -> str:
    """Return the path of g++."""
    compiler = shutil.which("g++")
    if compiler is None or sys.platform != "linux":
        raise CannotBuild("the imitated npu needs g++ on Linux")
    return compiler


def find_paddle() -> Path:
    """Return the folder of the installed paddle, without importing it."""
    package = importlib.util.find_spec("paddle")
    if package is None or package.origin is None:
        raise CannotBuild("the imitated npu needs paddle")
    return Path(package.origin).parent


def cache_dir() -> Path:
    """Return a folder that outlives the tests: the user's cache, else one of temporary files."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastffn-tests"
    try:
        base.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=base):
            return base
    except OSError:
        return Path(tempfile.gettempdir()) / f"fastffn-tests-{os.getuid()}"


def fingerprint(compiler: str, paddle_dir: Path, sources_dir: Path = SOURCES_DIR) -> str:
    """Name the wheel, its place, the compiler and the sources in 16 hexadecimal digits."""
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
    library = (paddle_dir / "base" / "libpaddle.so").stat()
    digest = hashlib.sha256(version)
    digest.update(repr((metadata.version("paddlepaddle"), str(paddle_dir))).encode())
    digest.update(repr((library.st_size, library.st_mtime_ns, COMPILE_FLAGS)).encode())
    for file in sorted([*sources_dir.glob("*.cc"), *sources_dir.glob("*.h")]):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Let one process in at a time."""
    with file.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def compile_library(compiler: str, paddle_dir: Path, sources_dir: Path, library: Path) -> None:
    """Compile the sources side by side and link them; the library appears whole or not at all."""
    include_dir = paddle_dir / "include"
    includes = [f"-I{include_dir}", f"-I{include_dir / 'third_party'}"]
    library_dirs = (paddle_dir / "libs", paddle_dir / "base")
    with tempfile.TemporaryDirectory(dir=library.parent.parent) as name:
        work_dir = Path(name)

        def compile_source(source: Path) -> str:
            target = work_dir / f"{source.stem}.o"
            run_compiler([compiler, *COMPILE_FLAGS, *includes, "-c", source, "-o", target])
            return str(target)

        # Those with the most templates take longest: they begin.
        sources = sorted(
            sources_dir.glob("*.cc"), key=lambda file: file.read_text().count("FORWARD(")
        )
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compile_source, reversed(sources)))
        linked = work_dir / library.name
        link = [compiler, "-shared", *objects, "-o", linked]
        for library_dir in library_dirs:
            link += [f"-L{library_dir}", f"-Wl,-rpath,{library_dir}"]
        run_compiler([*link, *(f"-l:{each}" for each in PADDLE_LIBRARIES)])
        os.replace(linked, library)  # noqa: PTH105


def run_compiler(command: list[str | Path]) -> None:
    """Run one command of the build; raises `RuntimeError` with what it said."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"the imitated npu does not compile:\n{done.stderr[-3000:]}")


if __name__ == "__main__":
    print(build_plugin())  # for CUSTOM_DEVICE_ROOT
