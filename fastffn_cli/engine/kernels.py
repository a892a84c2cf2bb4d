"""Our own operators (`models.kernels`): switched on for a process, and compiled.

Nothing needs them: where they cannot be had, Paddle's operators compute the same, slower.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from fastffn_cli.engine.device import Device

COMPILING = "compiling the CPU kernels: some 15 seconds, once"
COMPILING_CUDA = "compiling the CUDA kernels: some minutes, once"

LowRankForm: TypeAlias = Literal["auto", "fused", "chunked"]


def use_kernels(device: Device, *, wanted: bool, low_rank_ffn: LowRankForm = "auto") -> None:
    """Use the operators from now on if they are `wanted`, fit the device, and are compiled.

    `low_rank_ffn` is `Fused.low_rank_ffn`.
    """
    from models.kernels import library, low_rank_inner

    library.switch(on=wanted)
    low_rank_inner.choose_form(low_rank_ffn)
    if wanted and device.type == "cpu":
        with contextlib.suppress(library.Unavailable):
            library.load(build=False)
    if low_rank_ffn == "fused" and device.type == "gpu":
        from models.kernels import cuda_library

        with contextlib.suppress(library.Unavailable):
            cuda_library.load(build=False)


def prepare_kernels(
    device: Device,
    *,
    wanted: bool,
    say: Callable[[str], None],
    low_rank_ffn: LowRankForm = "auto",
) -> str | None:
    """Compile the operators that a run wants where that is still to do; `say` tells of the wait.

    Returns why they cannot be used, for people, or None: they can, or nobody asks for them.
    """
    if device.type == "cpu":
        return _prepare_cpu(say) if wanted else None
    if low_rank_ffn != "fused":
        return None
    reason = _prepare_cuda(say) if device.type == "gpu" else f"there are none for {device.type}"
    return reason and f"Fused.low_rank_ffn: the kernels are not used: {reason}"


def _prepare_cpu(say: Callable[[str], None]) -> str | None:
    from models.kernels import library

    if library.is_switched_off():
        return None
    try:
        if not library.is_built():
            say(COMPILING)
        library.load()
    except library.Unavailable as reason:
        return f"the CPU kernels are not used, training is slower without them: {reason}"
    return None


def _prepare_cuda(say: Callable[[str], None]) -> str | None:
    from models.kernels import cuda_library, library

    try:
        try:
            cuda_library.load(build=False)
        except cuda_library.NotCompiled:
            say(COMPILING_CUDA)
            cuda_library.load()
    except library.Unavailable as reason:
        return str(reason)
    return None
