"""What one of our checkpoints computes, for comparisons with the system that it came from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import paddle

from fastffn_cli.data.dataset import Batch
from fastffn_cli.engine.checkpoint import load_model
from fastffn_cli.generation.generate import generate
from fastffn_cli.generation.sampling import SamplingOptions
from fastffn_cli.tasks.causal_lm import CausalLM


def logits_and_loss(checkpoint: Path, ids_BT: np.ndarray) -> tuple[np.ndarray, float]:
    """Logits [B, T, V] of ids, and the mean loss of predicting each one from those before it."""
    model = load_model(checkpoint).model
    batch = Batch(ids_BT[:, :-1], ids_BT[:, 1:], np.ones(ids_BT[:, 1:].shape, np.float32))
    with paddle.no_grad():
        logits = model(paddle.to_tensor(ids_BT)).numpy()
        loss = CausalLM(model).loss(batch).item() / batch.mask_BS.size
    return logits, loss


def continue_greedily(
    checkpoint: Path, prompts: Sequence[Sequence[int]], length: int
) -> list[list[int]]:
    """The likeliest `length` next tokens of each prompt."""
    options = SamplingOptions(decode_strategy="greedy_search", max_dec_len=length)
    done = generate(load_model(checkpoint).model, prompts, options)
    return [each.tokens for each in done]
