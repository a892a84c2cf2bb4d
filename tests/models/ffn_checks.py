"""What the tests of several kinds of feed-forward check alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import paddle
import pytest
from paddle import Tensor, nn
from paddle.nn import functional

from models.ffn.base import Cost
from models.gpt import GPT, GPTConfig
from models.kernels import library

VOCABULARY = 61


def small_gpt_config(ffn: Mapping[str, Any], **more: Any) -> GPTConfig:
    """A GPT of two layers, without dropout."""
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 24,
        "num_layers": 2,
        "num_attention_heads": 3,
        "ffn_hidden_size": 96,
        "max_position_embeddings": 16,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    return GPTConfig(**{**sizes, **more}, ffn=ffn)


def next_token_loss(model: GPT, ids_BT: Tensor) -> Tensor:
    """Mean cross entropy of each next token."""
    logits = model(ids_BT[:, :-1])
    return functional.cross_entropy(logits.reshape([-1, VOCABULARY]), ids_BT[:, 1:].reshape([-1]))


def train_losses(ffn: Mapping[str, Any], steps: int = 20) -> list[float]:
    """Train a small GPT on one batch as the engine does; return each step's loss."""
    paddle.seed(5)
    model = GPT(small_gpt_config(ffn))
    model.train()
    optimizer = paddle.optimizer.AdamW(5e-3, parameters=model.parameters())
    source = np.random.default_rng(5)
    ids = paddle.to_tensor(source.integers(0, VOCABULARY, (4, 16)))
    losses = []
    for step in range(steps):
        model.set_progress(step / steps, source.random(len(model.layers)).tolist())
        loss = next_token_loss(model, ids)
        penalty = model.auxiliary_loss()
        (loss if penalty is None else loss + penalty).backward()
        optimizer.step()
        optimizer.clear_grad()
        losses.append(loss.item())
    return losses


def assert_gradients(
    loss: Callable[[], Tensor], tensors: Iterable[Tensor], rng: np.random.Generator
) -> None:
    """Compare gradients of a float64 loss with central differences, three entries a tensor."""
    loss().backward()
    step = 1e-6
    for tensor in tensors:
        for _ in range(3):
            index = tuple(int(rng.integers(0, size)) for size in tensor.shape)
            kept = tensor.numpy().copy()
            values = []
            for sign in (1, -1):
                moved = kept.copy()
                moved[index] += sign * step
                with paddle.no_grad():
                    paddle.assign(paddle.to_tensor(moved), tensor)
                    values.append(loss().item())
            with paddle.no_grad():
                paddle.assign(paddle.to_tensor(kept), tensor)
            numeric = (values[0] - values[1]) / (2 * step)
            assert tensor.grad.numpy()[index] == pytest.approx(numeric, rel=1e-5, abs=1e-8)


def unaccounted_per_token(layer: nn.Layer, counted: Cost, x_ND: Tensor) -> list[float]:
    """Return what autograd keeps beyond what `counted` says: with our operators, with Paddle's."""
    fused = kept_per_token(layer, x_ND) - counted.kept(fused=library.path() is not None)
    with library.suspended():
        return [fused, kept_per_token(layer, x_ND) - counted.kept(fused=False)]


def kept_per_token(layer: nn.Layer, x_ND: Tensor) -> float:
    """Count the float values that autograd keeps of a forward pass, beside input and weights."""
    sizes: dict[int, int] = {}
    tensors = []  # alive until all are counted, so that no address is given twice

    def keep(tensor: Tensor) -> Tensor:
        tensors.append(tensor)
        if tensor.is_floating_point() and tensor._is_initialized():
            sizes[tensor.data_ptr()] = int(tensor.size)
        return tensor

    with paddle.autograd.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(x_ND)
    known = {x_ND.data_ptr(), *(parameter.data_ptr() for parameter in layer.parameters())}
    return sum(size for place, size in sizes.items() if place not in known) / x_ND.shape[0]
