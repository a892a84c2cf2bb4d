"""How much memory a training step needs, from shapes: an estimate for the run card and for advice.

Checked against measured peaks in tests/engine/test_memory.py. The process itself (some 0.3 GB of
libraries) and the workspace of Paddle's kernels are not in it.
"""

from __future__ import annotations

from dataclasses import dataclass

from models.gpt import GPTConfig, count_parameters

FLOAT = 4
# Resident memory over the bytes of live tensors on a CPU, where freed blocks of unequal sizes leave
# holes: between 1.0 and 2.0 in measurements, lowest where few large tensors dominate.
HOST_WASTE = 1.25


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


def estimate_memory(
    config: GPTConfig, seq_len: int, *, half: bool = False, on_host: bool = False
) -> MemoryEstimate:
    """Estimate the peak of training with AdamW in float32; `half` is O2 with float32 masters.

    Fixed: weights, gradients and two moments (16 bytes a parameter; 18 with halves: 2 + 2, and 12
    for master and moments, and 2 of casts). The rest is what Paddle keeps for the backward pass,
    counted tensor by tensor, and the largest working set on top of it. `on_host` adds what the C
    library's allocator wastes on a CPU; Paddle's own allocators on devices reuse their blocks.
    """
    width = 2 if half else FLOAT
    layer = _count_layer(config, seq_len)
    # Softmax and logits, or their gradient; in float16 the loss takes a float32 copy as well.
    head = config.vocab_size * (width + FLOAT + (FLOAT if half else 0))
    # Between the factors of the embeddings: of the lookup, of the logits, and a gradient.
    head += (2 * config.hidden_size + 3 * (config.embedding_rank or 0)) * width
    per_token = width * config.num_layers * layer.kept
    per_token += max(head, width * (layer.rebuilt + layer.working))
    fixed = count_parameters(config) * (18 if half else 16)
    waste = HOST_WASTE if on_host else 1.0
    return MemoryEstimate(
        fixed=round(waste * fixed), per_sequence=round(waste * seq_len * per_token)
    )


@dataclass(frozen=True)
class _LayerCount:
    """Values per token: kept for the backward pass by every layer, rebuilt and worked on by one."""

    kept: float
    rebuilt: float
    working: float


def _count_layer(config: GPTConfig, seq_len: int) -> _LayerCount:
    """Count what a decoder layer keeps, in values per token.

    Of the residual width D: inputs and outputs of both norms (4), scaled queries, keys and values
    (3) and the joined heads (1); dropout masks are bytes, a quarter each. Of the score square H·T:
    the softmax, and with dropout also its result and mask. Of the hidden width F: before and after
    GELU. Of rank R: between the factors of either matrix (`Cost.kept_per_token`), of attention as
    well. The layer that keeps most stands for all.
    """
    d, square = config.hidden_size, config.num_attention_heads * seq_len
    masks = 0.5 * d if config.hidden_dropout_prob else 0.0
    scores = square * (2.25 if config.attention_probs_dropout_prob else 1.0)
    wide = max(cost.kept_per_token for cost in config.ffn_costs)
    narrow = config.attention_rank or 0  # between the factors of one projection
    everything = 8 * d + 2 * narrow + masks + scores + wide
    kept, rebuilt = everything, 0.0
    if config.use_recompute:
        kept, rebuilt = {
            "full": (d, everything),
            "full_attn": (4 * d + masks + wide, 4 * d + 2 * narrow + scores),
            "core_attn": (8 * d + 2 * narrow + masks + wide, scores),
        }[config.recompute_granularity]
    # Working sets seen in Paddle 3.3's backward pass: of the residual width, of the hidden width,
    # and of attention, whose gradients come when the layer's wide part is gone already.
    squares = 2.3 + (0.8 if rebuilt > scores else 0.0)
    squares -= 1.0 if config.attention_probs_dropout_prob else 0.0
    working = max(5.2 * d, wide / 2 + 3.2 * d, squares * square - wide)
    return _LayerCount(kept, rebuilt, working)
