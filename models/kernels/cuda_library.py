"""The library of CUDA kernels in this process: loaded or not, and for which tensors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import paddle
from paddle import Tensor
from paddle.base import core
from paddle.base.framework import OpProtoHolder
from paddle.nn import functional

from models.kernels import cuda_compiler, library
from models.kernels.activation import ACTIVATIONS
from models.kernels.compiler import BuildError
from models.kernels.library import Unavailable

RANK_LIMIT = 128
# In the order of `activation` in cuda/kernels.h.
KERNEL_ACTIVATIONS = ("gelu", "erf_gelu", "fast_gelu")
# Of the largest value in a trial: float32 itself, and some roundings of the half precisions.
TOLERANCES = {"float32": 2e-5, "float16": 4e-3, "bfloat16": 3e-2}
TRIAL_TOKENS, TRIAL_UNITS, TRIAL_RANK = 150, 200, 24

_served: frozenset[paddle.dtype] = frozenset()


class NotCompiled(Unavailable):
    """The kernels would first have to be compiled."""


def load(*, build: bool = True) -> str:
    """Register the operators with Paddle, try them, and return the types that they serve.

    The library is compiled first where it is not yet (about a minute), unless not to `build`. The
    trial compares output and gradients of every type with Paddle's operators in float64 on the GPU;
    a kernel that is off is not used. Idempotent. Raises `Unavailable`, with the reason.
    """
    global _served
    if not _served:
        _register(build)
        _served = frozenset(_types_of(_capability()))
        try:
            check_kernels()
        except Exception:
            _served = frozenset()
            raise
    return ", ".join(sorted(str(each).rpartition(".")[2] for each in _served))


def serves(z: Tensor, *others: Tensor | None) -> bool:
    """Tell whether the kernels are loaded, and know these tensors' device, type and rank."""
    if not _served or library.is_suspended() or z.dtype not in _served:
        return False
    ranks_fit = all(
        1 <= each.shape[-1] <= RANK_LIMIT for each in (z, others[-1]) if each is not None
    )
    if not paddle.in_dynamic_mode():  # a program being traced: its tensors have no place yet
        return ranks_fit and paddle.get_device().startswith("gpu")
    return ranks_fit and all(each is None or each.place.is_gpu_place() for each in (z, *others))


def low_rank_inner(
    z: Tensor, right1: Tensor, bias1: Tensor | None, left2: Tensor, activation: str
) -> Tensor:
    """Return ``activation(z @ right1 + bias1) @ left2`` from the kernels, in the dtype of z.

    `z` is [..., R], `right1` [R, F], `bias1` [F], `left2` [F, R]. Only z is kept for the backward
    pass. Raises Paddle's errors for shapes or devices that do not fit.
    """
    if bias1 is None:
        bias1 = paddle.zeros([right1.shape[-1]], right1.dtype)
    y = library.run(
        "cuda_low_rank_inner",
        z.reshape([-1, z.shape[-1]]),
        *(each.astype(z.dtype) for each in (right1, bias1, left2)),
        KERNEL_ACTIVATIONS.index(activation),
    )
    return y.reshape([*z.shape[:-1], left2.shape[-1]])


def check_kernels() -> None:
    """Raise `Unavailable` unless the kernels of all served types do what Paddle's operators do."""
    random = np.random.default_rng(0)
    shapes = (
        *([TRIAL_TOKENS, TRIAL_RANK], [TRIAL_RANK, TRIAL_UNITS], [TRIAL_UNITS]),
        *([TRIAL_UNITS, TRIAL_RANK], [TRIAL_TOKENS, TRIAL_RANK]),
    )
    arrays = [random.standard_normal(shape).astype("float32") / 4 for shape in shapes]
    for dtype in _served:
        name = str(dtype).rpartition(".")[2]
        for activation in KERNEL_ACTIVATIONS:
            rounded = [paddle.to_tensor(each).astype(dtype) for each in arrays]
            pairs = zip(
                _run(low_rank_inner, rounded, activation),
                _run(_chain, [each.astype("float64") for each in rounded], activation),
                strict=True,
            )
            for found, wanted in pairs:
                off, largest = float(np.abs(found - wanted).max()), float(np.abs(wanted).max())
                if not off <= TOLERANCES[name] * largest:
                    raise Unavailable(
                        f"the {name} kernel of {activation} is off by {off:.2g} at values up to "
                        f"{largest:.2g}"
                    )


def _run(
    function: Callable[..., Tensor], tensors: list[Tensor], activation: str
) -> list[np.ndarray]:
    """Return the output and the gradients of all inputs, as float64."""
    *inputs, gradient = (each.detach() for each in tensors)
    for each in inputs:
        each.stop_gradient = False
    output = function(*inputs, activation)
    output.backward(gradient)
    return [each.astype("float64").numpy() for each in (output, *(every.grad for every in inputs))]


def _chain(z: Tensor, right1: Tensor, bias1: Tensor, left2: Tensor, activation: str) -> Tensor:
    return paddle.matmul(ACTIVATIONS[activation](functional.linear(z, right1, bias1)), left2)


def _register(build: bool) -> None:
    if library.is_switched_off():
        raise Unavailable(f"switched off by {library.SWITCH_VARIABLE}")
    if not paddle.is_compiled_with_cuda():
        raise Unavailable("this Paddle is not one for CUDA")
    capability = _capability()
    if not _types_of(capability):
        raise Unavailable(f"compute capability {capability[0]}.{capability[1]}: 7.5 is the least")
    installed = library.installed_paddle()
    try:
        file = cuda_compiler.library_path(installed, capability)
        if not file.is_file():
            if not build:
                raise NotCompiled("they are not compiled yet")
            cuda_compiler.build(installed, capability, paddle.version.cuda())
        OpProtoHolder.instance().update_op_proto(core.load_op_meta_info_and_register_op(str(file)))
    except (BuildError, OSError, RuntimeError) as error:
        raise Unavailable(str(error)) from error


def _capability() -> tuple[int, int]:
    try:
        return paddle.device.cuda.get_device_capability()
    except (RuntimeError, ValueError, OSError) as error:
        raise Unavailable(f"the GPU does not tell its compute capability: {error}") from error


def _types_of(capability: tuple[int, int]) -> tuple[paddle.dtype, ...]:
    """As `fastffn::cuda::serves` has it: float32 and bfloat16 need instructions of 8.0."""
    if capability >= (8, 0):
        return (paddle.float32, paddle.float16, paddle.bfloat16)
    return (paddle.float16,) if capability >= (7, 5) else ()
