"""The checks of `doctor` that need a device: what it is, AMP, and a tiny stage 1 on it.

Separate from the other checks because everything here imports paddle and the models.
"""

from __future__ import annotations

import time

import numpy as np
import paddle

from fastffn_cli.config.schema import OptimizerSection
from fastffn_cli.data.dataset import Batch
from fastffn_cli.engine.device import (
    Device,
    custom_device_count,
    custom_device_types,
    gpu_count,
)
from fastffn_cli.engine.diagnose import Check
from fastffn_cli.engine.model import build_model
from fastffn_cli.engine.optimizer import AdamW
from fastffn_cli.engine.precision import Precision
from fastffn_cli.engine.step import TrainStep
from fastffn_cli.tasks.causal_lm import CausalLM
from models.ffn import merge
from models.gpt import GPT, GPTConfig
from models.kernels import library

TRIAL_MODEL = GPTConfig(
    vocab_size=64,
    hidden_size=32,
    num_layers=2,
    num_attention_heads=4,
    ffn_hidden_size=128,
    max_position_embeddings=16,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    ffn={"kind": "low_rank", "rank": 8},
)
TRIAL_STEPS = 12
TRIAL_LEARNING_RATE = 1e-2
LARGEST_MERGE_DIFFERENCE = 1e-4
LARGEST_KERNEL_DIFFERENCE = 1e-4  # relative; both sum in float32, in other orders


def check_device(device: Device) -> Check:
    """The device that would be used, and the others that could be."""
    others = [f"gpu:{index}" for index in range(gpu_count())]
    for kind in custom_device_types():
        others += [f"{kind}:{index}" for index in range(custom_device_count(kind))]
    others = [name for name in [*others, "cpu"] if name != device.name]
    detail = f"{device.describe()} (others: {', '.join(others) or 'none'})"
    return Check("device", "ok", detail)


def check_precision(device: Device) -> Check:
    """Which half-precision types AMP really uses here."""
    if device.type == "cpu":
        detail = "none: Paddle silently ignores AMP on a CPU, training is float32"
        return Check("mixed precision", "note", detail)
    types = [dtype for dtype in ("float16", "bfloat16") if device.supports(dtype)]
    if not types:
        return Check("mixed precision", "note", f"none on {device.name}: training is float32")
    return Check("mixed precision", "ok", ", ".join(types))


def check_plugin() -> Check:
    """The types of device that plugins have registered with Paddle."""
    kinds = custom_device_types()
    counts = ", ".join(f"{kind} ({custom_device_count(kind)} visible)" for kind in kinds)
    return Check("plugin", "ok", counts)


def check_kernels() -> Check:
    """The CPU kernels, compiled now if need be: one step's numbers against Paddle's operators."""
    if library.is_switched_off():
        detail = f"switched off by {library.SWITCH_VARIABLE}"
        return Check("cpu kernels", "note", detail, f"unset {library.SWITCH_VARIABLE}")
    try:
        path = library.load()
    except library.Unavailable as reason:
        remedy = "apt install g++   (training works without, slower)"
        return Check("cpu kernels", "note", f"not used: {reason}", remedy)
    with library.suspended():
        loss, norm = try_step()
    found_loss, found_norm = try_step()
    off = max(abs(found_loss / loss - 1), abs(found_norm / norm - 1))
    detail = f"{path} path, one step differs from Paddle's operators by {off:.1e}"
    if not off <= LARGEST_KERNEL_DIFFERENCE:
        remedy = f"export {library.SWITCH_VARIABLE}=off   trains with Paddle's operators alone"
        return Check("cpu kernels", "problem", detail, remedy)
    return Check("cpu kernels", "ok", detail)


def check_training(device: Device) -> Check:
    """Train a tiny low-rank GPT a few steps, merge it, and compare both models' logits."""
    begun = time.perf_counter()
    try:
        losses, difference = try_training()
    except Exception as error:
        text = " ".join(str(error).split())
        return Check(
            "training",
            "problem",
            f"a tiny model fails on {device.name}: {type(error).__name__}: {text[-300:]}",
            "fastffn doctor --device cpu   tells whether it is the device",
        )
    seconds = time.perf_counter() - begun
    detail = (
        f"{TRIAL_STEPS} steps of a tiny low-rank GPT on {device.name}: loss {losses[0]:.3f} -> "
        f"{losses[-1]:.3f}, merged logits differ by {difference:.1e}, {seconds:.1f} s"
    )
    remedy = (
        f'Check the installation: python -c \'import paddle; paddle.set_device("{device.name}")'
    )
    remedy += "; paddle.utils.run_check()'"
    if not losses[-1] < losses[0]:
        return Check("training", "problem", f"the loss does not fall: {detail}", remedy)
    if not difference <= LARGEST_MERGE_DIFFERENCE:
        return Check("training", "problem", f"merging changes the model: {detail}", remedy)
    return Check("training", "ok", detail)


def try_step() -> tuple[float, float]:
    """Return the loss and the gradient norm of the trial model's first update."""
    batch, model = trial_batch(), build_model(TRIAL_MODEL, seed=1)
    optimizer = AdamW(model, OptimizerSection(), multi_precision=False)
    result = TrainStep(
        CausalLM(model), optimizer, Precision(), micro_batch_size=batch.size, grad_clip=1.0
    )(batch, TRIAL_LEARNING_RATE)
    return result.loss, result.grad_norm


def try_training() -> tuple[list[float], float]:
    """Return the losses of a few updates on one batch, and max |logit - merged logit|."""
    model = build_model(TRIAL_MODEL, seed=1)
    optimizer = AdamW(model, OptimizerSection(), multi_precision=False)
    batch = trial_batch()
    step = TrainStep(
        CausalLM(model), optimizer, Precision(), micro_batch_size=batch.size, grad_clip=1.0
    )
    losses = [step(batch, TRIAL_LEARNING_RATE).loss for _ in range(TRIAL_STEPS)]
    model.eval()
    ids_BT = paddle.to_tensor(batch.tokens_BS)
    factored = _logits(model, ids_BT)
    merge(model)
    return losses, float(np.abs(_logits(model, ids_BT) - factored).max())


def trial_batch() -> Batch:
    """Return eight sequences of random ids for the trial model."""
    length = TRIAL_MODEL.max_position_embeddings
    ids = np.random.RandomState(1).randint(0, TRIAL_MODEL.vocab_size, (8, length + 1))
    return Batch(
        tokens_BS=ids[:, :-1].astype(np.int64),
        labels_BS=ids[:, 1:].astype(np.int64),
        mask_BS=np.ones((8, length), np.float32),
    )


def _logits(model: GPT, ids_BT: paddle.Tensor) -> np.ndarray:
    with paddle.no_grad():
        return np.asarray(model(ids_BT).numpy(), np.float64)
