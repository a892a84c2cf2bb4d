"""Attention in one operator of the device, where there is one that does what the plain one does.

Neither a missing nor a broken operator stops a run: it is tried before the run, on its own sequence
length and size of a head, against `models.gpt.attend` in float32. What does not agree is not used,
and `choose_attention` says why.
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
from models.gpt import MASKED, AttentionCore, GPTConfig, SelfAttention, attend

PLUGIN_OPERATOR = "flash_attention_npu"
# Of the largest value, in steps of the half precision: an operator sums in an order of its own.
TOLERANCE_STEPS = 8
# The trial has the run's sequence length up to this one, and so much dropout that a mask shows.
LONGEST_TRIAL, TRIAL_DROPOUT = 2048, 0.5

# From q, k and v [B, T, H, K] and the dropout of the probabilities to causal attention, so shaped.
Operator: TypeAlias = Callable[[Tensor, Tensor, Tensor, float], Tensor]


class Unusable(Exception):
    """An operator is not there, or does not do what it should; the text says which."""


@dataclass(frozen=True)
class FusedCore:
    """A core of `SelfAttention` that leaves causal attention to `operator`, in `dtype`.

    Any other mask (one for each sequence, or of cached keys) is left to the plain core.
    """

    operator: Operator
    dtype: str

    def __call__(
        self, attention: SelfAttention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor
    ) -> Tensor:
        """Map q, k and v [HB, T, K] to [HB, T, K] of `dtype`."""
        if mask.ndim > 2 or q.shape != k.shape:
            return attend(attention, q, k, v, mask)
        split = [attention.heads, -1, *q.shape[1:]]
        q_BTHK, k_BTHK, v_BTHK = (
            each.astype(self.dtype).reshape(split).transpose([1, 2, 0, 3]) for each in (q, k, v)
        )
        dropout = attention.dropout_prob if attention.training else 0.0
        attended = self.operator(q_BTHK, k_BTHK, v_BTHK, dropout)
        return attended.transpose([2, 0, 1, 3]).reshape(q.shape)


def choose_attention(
    config: Config, dtype: str, device: Device
) -> tuple[AttentionCore | None, str | None]:
    """Return the fused core that `Model.use_flash_attn` asks for, None for the plain one.

    `dtype` is what the run computes in. The notice says why the wish cannot be met. An operator is
    tried once in a process for the same sizes; the device's random numbers stay as they were.
    """
    section = config.Model
    if not section.use_flash_attn:
        return None, None
    try:
        if section.masked_token_id is not None:
            raise Unusable("Model.masked_token_id needs another mask than the causal one")
        if device.type == "cpu":
            raise Unusable("a CPU has no fused one")
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
    for library in sorted(Path(root).glob("*.so")) if root else ():
        extension_utils.load_op_meta_info_and_register_op(str(library))


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
    attention = _trial_attention(head_size, 0.0)
    outputs, gradients = _attend(fused, attention, seq_len, fused.dtype)
    expected, slopes = _attend(attend, attention, seq_len, fused.dtype, computed="float32")
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
    attention = _trial_attention(head_size, TRIAL_DROPOUT)
    generator = random_generator()
    generator.manual_seed(1)
    first, _ = _attend(fused, attention, seq_len, fused.dtype)
    second, _ = _attend(fused, attention, seq_len, fused.dtype)
    generator.manual_seed(1)
    again, gradients = _attend(fused, attention, seq_len, fused.dtype, own_gradient=True)
    remedy = "; Model.attention_probs_dropout_prob: 0 does without it"
    if np.array_equal(first, undropped) or np.array_equal(first, second):
        raise Unusable(f"the operator's dropout drops nothing new{remedy}")
    if not np.array_equal(first, again):
        raise Unusable(f"the operator's dropout does not follow the seed{remedy}")
    values = _trial_values(attention, seq_len)[2]
    forward, backward = float((again * again).sum()), float((values * gradients[2]).sum())
    if not abs(backward - forward) <= _tolerance(fused.dtype) * forward:
        raise Unusable(f"the operator's gradient does not drop what its output does{remedy}")


def _trial_attention(head_size: int, dropout: float) -> SelfAttention:
    config = GPTConfig(
        vocab_size=2,
        hidden_size=2 * head_size,
        num_layers=1,
        num_attention_heads=2,
        ffn_hidden_size=1,
        attention_probs_dropout_prob=dropout,
    )
    attention = SelfAttention(config)
    attention.train()
    return attention


def _trial_values(attention: SelfAttention, seq_len: int) -> np.ndarray:
    """Return q, k, v and the gradient of the output: [4, HB, T, K] of two sequences."""
    shape = (4, 2 * attention.heads, seq_len, attention.head_size)
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def _attend(
    attention_core: AttentionCore,
    attention: SelfAttention,
    seq_len: int,
    dtype: str,
    *,
    computed: str | None = None,
    own_gradient: bool = False,
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return output and gradients of q, k and v, which are rounded to `dtype` first."""
    rounded = [
        paddle.to_tensor(array).astype(dtype).astype(computed or dtype)
        for array in _trial_values(attention, seq_len)
    ]
    q, k, v, gradient = rounded
    for each in (q, k, v):
        each.stop_gradient = False
    mask = paddle.triu(paddle.full([seq_len, seq_len], MASKED), diagonal=1)
    output = attention_core(attention, q, k, v, mask)
    output.backward(output.detach() if own_gradient else gradient)
    tensors = (output, q.grad, k.grad, v.grad)
    arrays = [each.astype("float32").numpy() for each in tensors]
    return arrays[0], arrays[1:]


def _tolerance(dtype: str) -> float:
    return TOLERANCE_STEPS * float(paddle.finfo(dtype).eps)
