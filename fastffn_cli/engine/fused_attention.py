"""Attention in one operator of the device, where there is one that does what the plain one does.

Neither a missing nor a broken operator stops a run: it is tried before the run, on its own sequence
length and size of a head, against `attend_plainly` in float32. What does not agree is not used, and
`choose_attention` says why. On a CPU `attend` itself is fused, wherever the kernels are.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import paddle
from paddle import Tensor, nn
from paddle.base import core
from paddle.base.framework import OpProtoHolder
from paddle.nn.functional.flash_attention import flash_attention
from paddle.utils.cpp_extension import extension_utils

from fastffn_cli.config.schema import Config
from fastffn_cli.engine.device import Device, random_generator
from fastffn_cli.engine.paddle_build import first_line
from models.gpt import SelfAttention
from models.kernels import library
from models.kernels.attention import LARGEST_HEAD_SIZE, AttentionCore, attend, attend_plainly
from models.kv_cache import LayerCache

PLUGIN_OPERATOR = "flash_attention_npu"
# Of the largest value, in steps of the half precision: an operator sums in an order of its own.
TOLERANCE_STEPS = 8
# The trial has the run's sequence length up to this one, and so much dropout that a mask shows.
LONGEST_TRIAL, TRIAL_HEADS, TRIAL_DROPOUT = 2048, 2, 0.5

# From q, k and v [B, T, H, K] and the dropout of the probabilities to causal attention, so shaped.
Operator: TypeAlias = Callable[[Tensor, Tensor, Tensor, float], Tensor]


class Unusable(Exception):
    """An operator is not there, or does not do what it should; the text says which."""


@dataclass(frozen=True)
class FusedCore:
    """A core of `SelfAttention` that leaves causal attention to `operator`, in `dtype`.

    Any other mask, and cached keys, are left to `attend`.
    """

    operator: Operator
    dtype: str

    def __call__(
        self,
        qkv: Tensor,
        heads: int,
        mask: Tensor | None = None,
        dropout_prob: float = 0.0,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """Map qkv [B, T, 3D] to [B, T, D] of `dtype`, as `attend` does."""
        if mask is not None or cache is not None:
            return attend(qkv, heads, mask, dropout_prob, cache)
        batch, steps, columns = qkv.shape
        parts = qkv.astype(self.dtype).reshape([batch, steps, heads, columns // heads])
        q_BTHK, k_BTHK, v_BTHK = paddle.split(parts, 3, axis=-1)
        attended = self.operator(q_BTHK, k_BTHK, v_BTHK, dropout_prob)
        return attended.reshape([batch, steps, columns // 3])


def choose_attention(
    config: Config, dtype: str, device: Device
) -> tuple[AttentionCore | None, str | None]:
    """Return the fused core that `Model.use_flash_attn` asks for, None for the one of the models.

    That is fused on a CPU with its kernels, in any case. `dtype` is what the run computes in. The
    notice says why the wish cannot be met. An operator is tried once in a process for the same
    sizes; the device's random numbers stay as they were.
    """
    section = config.Model
    if not section.use_flash_attn:
        return None, None
    try:
        if device.type == "cpu":
            if library.path() is None:
                raise Unusable("the CPU kernels are not in use (fastffn doctor)")
            head_size = section.hidden_size // section.num_attention_heads
            if head_size > LARGEST_HEAD_SIZE:
                raise Unusable(f"heads of at most {LARGEST_HEAD_SIZE} are fused, not {head_size}")
            return None, None
        if section.masked_token_id is not None:
            raise Unusable("Model.masked_token_id needs another mask than the causal one")
        if dtype == "float32":
            raise Unusable("the fused one is for float16 and bfloat16 (Engine.mix_precision)")
        fused = _try_operators(
            device,
            dtype,
            section.hidden_size // section.num_attention_heads,
            min(config.Data.dataset.max_seq_len, LONGEST_TRIAL),
            section.attention_probs_dropout_prob > 0,
        )
    except Unusable as reason:
        return None, f"Model.use_flash_attn: attention is the plain one: {reason}"
    return fused, None


def install_attention(model: nn.Layer, attention: AttentionCore) -> None:
    """Make every attention of a model use this core; parameters stay what they are."""
    for layer in model.sublayers(include_self=True):
        if isinstance(layer, SelfAttention):
            layer.core = attention


def run_gpu_operator(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    """Paddle's FlashAttention for CUDA (Dao et al. 2022, arXiv:2205.14135)."""
    return flash_attention(q, k, v, dropout=dropout, causal=True)[0]


def run_plugin_operator(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    """The custom operator of Ascend's plugin in its first form, of 2023 and 2024.

    Behind q, k and v: seed, mask, dropout, causal, return_softmax, is_test and
    is_triangle_upper_mask.
    """
    rest = (dropout, True, False, False, True)
    return core.eager._run_custom_op(PLUGIN_OPERATOR, q, k, v, None, None, *rest)[0]


def run_plugin_operator_with_lengths(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    """The same in its later form, which takes the lengths of packed sequences as well: none."""
    rest = (dropout, True, False, False, True, False)
    return core.eager._run_custom_op(PLUGIN_OPERATOR, q, k, v, None, None, [], [], *rest)[0]


def register_plugin_operators() -> None:
    """Register the custom operators in the libraries of the plugins that Paddle has loaded."""
    root = os.environ.get("CUSTOM_DEVICE_ROOT")  # Paddle sets it to its default
    for file in sorted(Path(root).glob("*.so")) if root else ():
        extension_utils.load_op_meta_info_and_register_op(str(file))


def _operators(device: Device) -> Iterator[Operator]:
    if device.type == "gpu":
        yield run_gpu_operator
        return
    register_plugin_operators()
    if not OpProtoHolder.instance().has_op_proto(PLUGIN_OPERATOR):
        raise Unusable(f"the plugin of {device.name} has no operator {PLUGIN_OPERATOR}")
    yield run_plugin_operator_with_lengths
    yield run_plugin_operator


def _try_operators(
    device: Device, dtype: str, head_size: int, seq_len: int, drops: bool
) -> FusedCore:
    """Return the first form of the operator that works; raises `Unusable` with what is wrong."""
    fused, problem = _tried(device, dtype, head_size, seq_len, drops)
    if fused is None:
        raise Unusable(problem)
    return fused


@functools.cache
def _tried(
    device: Device, dtype: str, head_size: int, seq_len: int, drops: bool
) -> tuple[FusedCore | None, str]:
    generator = random_generator()
    state = generator.get_state()
    problem = ""
    try:
        for operator in _operators(device):
            fused = FusedCore(operator, dtype)
            try:
                check_core(fused, head_size=head_size, seq_len=seq_len, drops=drops)
            except TypeError as error:  # arguments of another form
                problem = f"the operator fails: {first_line(error)}"
                continue
            return fused, ""
    except Unusable as reason:
        problem = str(reason)
    except Exception as error:  # whatever the operator raises: the plain one is there
        problem = f"the operator fails: {first_line(error)}"
    finally:
        generator.set_state(state)
    return None, problem


def check_core(fused: FusedCore, *, head_size: int, seq_len: int, drops: bool) -> None:
    """Raise `Unusable` unless a core does what `attend` does, and drops as it should if `drops`.

    Compared are its output and its gradients with those of the plain core in float32, on two
    sequences of two heads with the current device's operators.
    """
    outputs, gradients = _attend(fused, head_size, seq_len, fused.dtype)
    expected, slopes = _attend(attend_plainly, head_size, seq_len, fused.dtype, computed="float32")
    names = ("output", "gradient of q", "gradient of k", "gradient of v")
    pairs = zip((outputs, *gradients), (expected, *slopes), strict=True)
    for name, (found, wanted) in zip(names, pairs, strict=True):
        off, largest = float(np.abs(found - wanted).max()), float(np.abs(wanted).max())
        if not off <= _tolerance(fused.dtype) * largest:
            raise Unusable(
                f"the operator's {name} is off by {off:.2g} at values up to {largest:.2g}"
            )
    if drops:
        _check_dropout(fused, head_size, seq_len, undropped=outputs)


def _check_dropout(fused: FusedCore, head_size: int, seq_len: int, undropped: np.ndarray) -> None:
    """Raise `Unusable` unless dropout is there, follows the generator and is that of the gradient.

    Attention is linear in v: with the gradient g of the output, the sum of v times its gradient is
    that of the output times g, if both passes drop the same probabilities. g is the output itself.
    """
    sizes = (head_size, seq_len, fused.dtype)
    generator = random_generator()
    generator.manual_seed(1)
    first, _ = _attend(fused, *sizes, dropout=TRIAL_DROPOUT)
    second, _ = _attend(fused, *sizes, dropout=TRIAL_DROPOUT)
    generator.manual_seed(1)
    again, gradients = _attend(fused, *sizes, dropout=TRIAL_DROPOUT, own_gradient=True)
    remedy = "; Model.attention_probs_dropout_prob: 0 does without it"
    if np.array_equal(first, undropped) or np.array_equal(first, second):
        raise Unusable(f"the operator's dropout drops nothing new{remedy}")
    if not np.array_equal(first, again):
        raise Unusable(f"the operator's dropout does not follow the seed{remedy}")
    values = _parts(_trial_values(head_size, seq_len)[0])[2]
    forward, backward = float((again * again).sum()), float((values * gradients[2]).sum())
    if not abs(backward - forward) <= _tolerance(fused.dtype) * forward:
        raise Unusable(f"the operator's gradient does not drop what its output does{remedy}")


def _trial_values(head_size: int, seq_len: int) -> tuple[np.ndarray, np.ndarray]:
    """Return qkv and the gradient of the output, of two sequences."""
    rng = np.random.default_rng(0)
    width = TRIAL_HEADS * head_size
    shapes = [(2, seq_len, 3 * width), (2, seq_len, width)]
    qkv, gradient = (rng.standard_normal(shape, np.float32) for shape in shapes)
    return qkv, gradient


def _parts(qkv: np.ndarray) -> list[np.ndarray]:
    """Return q, k and v [B, T, H, K] of their columns."""
    return np.split(qkv.reshape(*qkv.shape[:2], TRIAL_HEADS, -1), 3, axis=-1)


def _attend(
    attention_core: AttentionCore,
    head_size: int,
    seq_len: int,
    dtype: str,
    *,
    computed: str | None = None,
    dropout: float = 0.0,
    own_gradient: bool = False,
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return output and gradients of q, k and v, which are rounded to `dtype` first."""
    qkv, gradient = (
        paddle.to_tensor(array).astype(dtype).astype(computed or dtype)
        for array in _trial_values(head_size, seq_len)
    )
    qkv.stop_gradient = False
    output = attention_core(qkv, TRIAL_HEADS, None, dropout, None)
    output.backward(output.detach() if own_gradient else gradient)
    found, slopes = (each.astype("float32").numpy() for each in (output, qkv.grad))
    return found, _parts(slopes)


def _tolerance(dtype: str) -> float:
    return TOLERANCE_STEPS * float(paddle.finfo(dtype).eps)
