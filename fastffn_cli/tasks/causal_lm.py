"""Next-token prediction: the task of pretrain, posttrain and eval."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import paddle
from paddle import Tensor

if TYPE_CHECKING:
    from fastffn_cli.data.dataset import Batch
    from models.gpt import GPT

LARGEST_EXPONENT = 20.0  # FleetX's cap: a loss above it prints as e^20, not as an overflow


class CausalLM:
    """Cross entropy of each next token, float32 whatever the precision of the model."""

    name = "lm"

    def __init__(self, model: GPT) -> None:
        self.model = model

    def loss(self, batch: Batch, valid: float = 1.0) -> Tensor:
        """Return the sum over unmasked tokens of -log p(label) / valid: float32, 0-d.

        `batch` holds tokens, labels and mask of [B, S]; they go to the current device.
        """
        return self.score(self.run_model(batch), batch, valid)

    def run_model(self, batch: Batch) -> Tensor:
        """Return the model's last hidden states [B, S, D]."""
        return self.model.hidden(to_device(batch.tokens_BS))

    def score(self, outputs: Tensor, batch: Batch, valid: float = 1.0) -> Tensor:
        """Return the sum over unmasked tokens of -log p(label) / valid from hidden states."""
        weights_BS = to_device(batch.mask_BS / np.float32(valid))
        return self.model.loss(outputs, to_device(batch.labels_BS), weights_BS)

    def penalty(self, batch: Batch) -> Tensor | None:
        """Return the feed-forwards' auxiliary loss, for each unmasked token once, or None."""
        auxiliary = self.model.auxiliary_loss()
        return None if auxiliary is None else auxiliary * self.weight(batch)

    def begin_step(self, share: float, seed: int) -> None:
        """Tell the feed-forwards how much of the run is done, and draw a number for each layer."""
        draws = np.random.default_rng(seed).random(self.model.config.num_layers)
        self.model.set_progress(share, draws.tolist())

    def weight(self, batch: Batch) -> float:
        """Return the number of unmasked tokens."""
        return float(np.sum(batch.mask_BS, dtype=np.float64))

    def metrics(self, mean_loss: float) -> dict[str, float]:
        """Return the perplexity."""
        return {"ppl": perplexity(mean_loss)}


def to_device(array: np.ndarray) -> Tensor:
    """Copy an array of any layout to the current device.

    Each call of `paddle.to_tensor` (3.3.1) keeps 112 bytes for ever: a long run grew by them.
    """
    tensor = paddle.empty(array.shape, array.dtype.name)
    tensor.set_value(array)
    return tensor


def perplexity(mean_loss: float) -> float:
    """Return exp(mean_loss), capped at e^20 as FleetX caps it."""
    return math.exp(min(LARGEST_EXPONENT, mean_loss))
