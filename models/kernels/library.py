"""The library of CPU kernels in this process: loaded or not, and who may use it."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paddle
from paddle import Tensor
from paddle.base import core
from paddle.base.framework import OpProtoHolder

from models.kernels import compiler

SWITCH_VARIABLE = "FASTFFN_KERNELS"
FEW_ROWS = 8  # of a decoding step, whose every microsecond counts
OFF = frozenset({"0", "false", "off", "no"})

_path: str | None = None  # of the loaded library: avx512, avx2 or portable
_multiplies = False
_suspended = False


class Unavailable(Exception):
    """The kernels cannot be used here; the text says why, in one line."""


def load(*, build: bool = True) -> str:
    """Register the operators with Paddle and return the path in use: avx512, avx2 or portable.

    The library is compiled first where it is not yet (some 15 seconds), unless not to `build`.
    Idempotent. Raises `Unavailable`: switched off by FASTFFN_KERNELS=off, no compiler, ...
    """
    global _path, _multiplies
    if _path is not None:
        return _path
    if is_switched_off():
        raise Unavailable(f"{SWITCH_VARIABLE}={os.environ[SWITCH_VARIABLE]}")
    file = _library_file(build)
    try:
        # What `paddle.utils.cpp_extension` does, whose import needs setuptools and warns.
        operators = core.load_op_meta_info_and_register_op(str(file))
        OpProtoHolder.instance().update_op_proto(operators)
        library = ctypes.CDLL(str(file))
    except (OSError, RuntimeError) as error:
        raise Unavailable(f"{file} does not load: {error}") from error
    library.fastffn_kernels_path.restype = ctypes.c_char_p
    library.fastffn_multiplies.restype = ctypes.c_bool
    _multiplies = library.fastffn_multiplies()
    _path = library.fastffn_kernels_path().decode()
    return _path


def is_switched_off() -> bool:
    """Tell whether FASTFFN_KERNELS=off forbids them."""
    return os.environ.get(SWITCH_VARIABLE, "").strip().lower() in OFF


def switch(*, on: bool) -> None:
    """Use the kernels from now on, once loaded, or the reference paths."""
    global _suspended
    _suspended = not on


def is_suspended() -> bool:
    """Tell whether the reference paths are in use, whatever is loaded."""
    return _suspended


def is_built() -> bool:
    """Tell whether `load` would find the library compiled."""
    try:
        return compiler.library_path(installed_paddle()).is_file()
    except compiler.BuildError:
        return False


def path() -> str | None:
    """Return the path in use (avx512, avx2, portable), None while the kernels are not loaded."""
    return None if _suspended else _path


def multiplies() -> bool:
    """Tell whether kernels can multiply large matrices: with the MKL of Paddle's x86 wheels."""
    return _multiplies and not _suspended


def serves(*tensors: Tensor | None) -> bool:
    """Tell whether the kernels are loaded and these are all float32 tensors of the CPU."""
    if _path is None or _suspended:
        return False
    if not paddle.in_dynamic_mode():  # a program being traced: its tensors have no place yet
        on_cpu = paddle.get_device() == "cpu"
        return on_cpu and all(each is None or each.dtype == paddle.float32 for each in tensors)
    return all(
        each is None or (each.dtype == paddle.float32 and each.place.is_cpu_place())
        for each in tensors
    )


def is_few(x: Tensor) -> bool:
    """Tell whether x [..., D] is so few rows that an operator's preparations would take longer."""
    return 0 <= math.prod(x.shape[:-1]) < FEW_ROWS  # of a program being traced, sizes may be -1


def run(operator: str, *arguments: Any) -> Any:
    """Run `fastffn_<operator>` on tensors and attributes, in their order; return its outputs.

    Operators see tensors without strides. Under `no_grad` their outputs ask for no gradient, which
    Paddle leaves to them.
    """
    if not paddle.in_dynamic_mode():
        outputs = paddle._C_ops._run_custom_op(f"fastffn_{operator}", *arguments)
    else:
        dense = [each.contiguous() if isinstance(each, Tensor) else each for each in arguments]
        outputs = paddle._C_ops._run_custom_op(f"fastffn_{operator}", *dense)
        if not paddle.is_grad_enabled():
            for output in outputs:
                output.stop_gradient = True
    return outputs[0] if len(outputs) == 1 else outputs


@contextlib.contextmanager
def suspended() -> Iterator[None]:
    """Use the reference paths inside the block, as if nothing were loaded (not thread-safe)."""
    before = _suspended
    switch(on=False)
    try:
        yield
    finally:
        switch(on=not before)


def _library_file(build: bool) -> Path:
    installed = installed_paddle()
    try:
        file = compiler.library_path(installed)
        if not file.is_file():
            if not build:
                raise Unavailable("they are not compiled yet")
            compiler.build(installed)
    except compiler.BuildError as error:
        raise Unavailable(str(error)) from error
    return file


def installed_paddle() -> compiler.Paddle:
    """Return where the Paddle of this process has its headers and libraries."""
    base = Path(paddle.__file__).parent
    return compiler.Paddle(
        version=paddle.__version__, include=base / "include", libs=(base / "libs", base / "base")
    )
