"""Building the library of CPU kernels from `csrc/`, once for each version of everything it is of.

Paddle's `cpp_extension.load` would do the same in one serial `setup.py` that needs setuptools,
imports paddle a second time, writes to stdout, and has one set of flags for all files. Here each
file has its own flags (one file is compiled once for each instruction set), and all are compiled
at a time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).parent / "csrc"
LIBRARY_NAME = "fastffn_kernels.so"
BUILD_SECONDS = 300  # then the compiler is taken to hang
# No -ffast-math: sums would change their order with the compiler's mood, and NaN would be lost.
COMMON_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fopenmp", "-fno-math-errno")
# The name of a path's namespace -> its flags on x86-64; other processors have the portable one.
X86_PATHS = {
    "portable": (),
    "avx2": ("-mavx2", "-mfma"),
    "avx512": (
        *("-mavx2", "-mfma", "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl"),
        "-mprefer-vector-width=512",
    ),
}


class BuildError(Exception):
    """The library cannot be built here; the text is one line for people."""


@dataclass(frozen=True)
class Paddle:
    """Where the headers and libraries of the Paddle that runs are."""

    version: str
    include: Path
    libs: tuple[Path, ...]


def library_path(paddle: Paddle) -> Path:
    """Return where the library for this Paddle and processor family lies or would lie."""
    digest = hashlib.sha256()
    parts = [paddle.version, sys.version.split()[0], platform.machine()]
    digest.update("\n".join([*parts, *map(str, paddle.libs)]).encode())
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    digest.update(Path(__file__).read_bytes())  # the flags
    return cache_folder() / f"kernels-{digest.hexdigest()[:16]}" / LIBRARY_NAME


def cache_folder() -> Path:
    """Return the folder that built libraries are kept in: the user's cache, by XDG's rule."""
    chosen = os.environ.get("FASTFFN_CACHE_DIR")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastffn"


def build(paddle: Paddle) -> Path:
    """Compile the library unless it is there, and return its path; raises `BuildError`."""
    return build_once(library_path(paddle), lambda folder: _compile(paddle, folder))


def build_once(target: Path, compile_in: Callable[[Path], Path]) -> Path:
    """Return `target`, made by `compile_in` a new folder unless it is there.

    Several processes may ask at once: one compiles, the others wait for it. Raises `BuildError`.
    """
    if target.is_file():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.parent / "lock"):
            if not target.is_file():
                with tempfile.TemporaryDirectory(dir=target.parent) as folder:
                    built = compile_in(Path(folder))
                    built.replace(target)  # whole or not at all
    except OSError as error:
        raise BuildError(f"{target.parent}: {error.strerror or error}") from error
    return target


def find_compiler() -> str:
    """Return the C++ compiler: $CXX, g++ or clang++; raises `BuildError` without one."""
    wish = os.environ.get("CXX") or "g++"
    found = shutil.which(wish) or (shutil.which("clang++") if "CXX" not in os.environ else None)
    if found is None:
        raise BuildError(f"no C++ compiler ({wish}) on the PATH")
    return found


def _compile(paddle: Paddle, folder: Path) -> Path:
    if sys.platform != "linux":
        raise BuildError(f"the kernels are built on Linux only, this is {sys.platform}")
    compiler = find_compiler()
    paths = X86_PATHS if platform.machine() in {"x86_64", "AMD64"} else {"portable": ()}
    includes = [f"-isystem{each}" for each in _include_dirs(paddle)]
    commands: dict[str, list[str]] = {
        "operators.o": [*includes, "-O2", "-w", str(SOURCES / "operators.cc")],
        "dispatch.o": [str(SOURCES / "dispatch.cc")],
    }
    for name, flags in paths.items():
        defined = f"-DFASTFFN_PATH={name}"
        commands[f"{name}.o"] = [*flags, defined, "-Wno-psabi", str(SOURCES / "path.cc")]
    compile_all({name: [compiler, *COMMON_FLAGS, *rest] for name, rest in commands.items()}, folder)
    linked = [*commands, *link_flags(paddle), _openmp_flag(paddle)]
    run_compiler([compiler, "-shared", "-o", LIBRARY_NAME, *linked], folder)
    return folder / LIBRARY_NAME


def _include_dirs(paddle: Paddle) -> list[Path]:
    import sysconfig

    python = sysconfig.get_paths()
    return [
        paddle.include,
        paddle.include / "third_party",
        *(Path(python[key]) for key in ("include", "platinclude")),
    ]


def link_flags(paddle: Paddle) -> list[str]:
    """Return what links a library with Paddle's own."""
    flags = []
    for folder in paddle.libs:
        flags += [f"-L{folder}", f"-Wl,-rpath,{folder}"]
    return flags + [
        f"-l:{name}"
        for name in ("libpaddle.so", "libphi.so", "libphi_core.so", "libcommon.so")
        if any((folder / name).exists() for folder in paddle.libs)
    ]


def _openmp_flag(paddle: Paddle) -> str:
    """Link with Paddle's own OpenMP, if it has one: two sets of spinning threads would fight."""
    has_own = any((folder / "libiomp5.so").exists() for folder in paddle.libs)
    return "-l:libiomp5.so" if has_own else "-fopenmp"


def compile_all(commands: Mapping[str, list[str]], folder: Path) -> None:
    """Run all compilers at a time, each to its object file in the folder; raises `BuildError`."""
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        for _ in pool.map(
            lambda item: run_compiler([*item[1], "-c", "-o", item[0]], folder), commands.items()
        ):
            pass


def run_compiler(command: list[str], folder: Path) -> None:
    """Run one compiler or linker in the folder; raises `BuildError` with its first error."""
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=BUILD_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"the compiler took more than {BUILD_SECONDS} s") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line]
        name = Path(command[0]).name
        raise BuildError(f"{name} failed: {(lines or ['no message'])[0].strip()}")


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    import fcntl

    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
