"""How much memory a training step needs, from shapes: an estimate for the run card and for advice.

Checked against measured peaks in tests/engine/test_memory.py; allocators, libraries and the
framework's own workspace are not in it.
"""

from __future__ import annotations

from dataclasses import dataclass

from models.gpt import GPTConfig, count_parameters

FLOAT = 4


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of a training step: what any micro batch needs, and each sequence's part."""

    fixed: int
    per_sequence: int

    def total(self, micro_batch_size: int) -> int:
        """Bytes at this micro batch size."""
        return self.fixed + micro_batch_size * self.per_sequence

    def largest_micro_batch(self, available: int, local_batch_size: int, below: int) -> int | None:
        """Largest divisor of the local batch, smaller than `below`, that fits; None if none."""
        fitting = [
            size
            for size in range(1, below)
            if local_batch_size % size == 0 and self.total(size) <= available
        ]
        return max(fitting) if fitting else None


def estimate_memory(config: GPTConfig, seq_len: int, *, half: bool = False) -> MemoryEstimate:
    """Estimate float32 training with AdamW; `half` is float16/bfloat16 O2 with float32 masters.

    Fixed: weights, gradients and two moments (16 bytes a parameter; 18 with halves: 2 + 2, and 12
    for master and moments, and 2 of casts). Activations per token and layer are counted operator by
    operator as Paddle keeps them for the backward pass.
    """
    parameters = count_parameters(config)
    fixed = parameters * (18 if half else 16)
    width = 2 if half else FLOAT
    d, t, heads = config.hidden_size, seq_len, config.num_attention_heads
    # norm1, qkv, its per-head pieces joined again (q, scaled q, k, v), attended, joined, out,
    # dropout and its mask, residual
    attention = 15 * d + heads * t * (4 if config.attention_probs_dropout_prob else 2)
    dropout = 2 * d if config.hidden_dropout_prob else 0
    rank = int(config.ffn.get("rank", 0))
    # norm2, hidden before bias, after bias, after GELU; factors' narrow tensors; output, residual
    feed_forward = 4 * d + 3 * config.ffn_hidden_size + 2 * rank
    per_layer = attention + feed_forward + 2 * dropout
    if config.use_recompute:
        kept = {
            "full": d,
            "full_attn": d + feed_forward + dropout,
            "core_attn": per_layer - heads * t * 3,
        }[config.recompute_granularity]
        activations = config.num_layers * kept + per_layer
    else:
        activations = config.num_layers * per_layer
    # Logits, their float32 softmax and its gradient.
    head = config.vocab_size * (width + 2 * FLOAT)
    per_token = activations * width + head + 6 * d * width
    return MemoryEstimate(fixed=fixed, per_sequence=t * per_token)
