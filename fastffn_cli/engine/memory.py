"""How much memory a training step needs, from shapes: an estimate for the run card and for advice.

Checked against measured peaks on one CPU in tests/engine/test_memory.py, and of two real processes
in tests/distributed/test_card_memory.py. The process itself (some 0.3 GB of libraries), the
workspace of Paddle's kernels and communication buffers are not in it. What a card of several needs
is the same count over its `Share`.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastffn_cli.engine.share import (
    WHOLE,
    Share,
    count_share,
    largest_unit,
    share_costs,
    summed_width,
)
from models.gpt import GPTConfig
from models.kernels.attention import LARGEST_HEAD_SIZE
from models.kernels.linear_cross_entropy import count_chunk_tokens

FLOAT, HALF = 4, 2
# AdamW, bytes a parameter: two moments; with half weights a master as well, and casts.
STATE, STATE_HALF = 8, 14
# Resident memory over the bytes of live tensors on a CPU, where freed blocks of unequal sizes leave
# holes: between 1.0 and 2.5 in measurements (benchmarks/memory.py), lowest where few large tensors
# dominate, highest with recompute.
HOST_WASTE = 1.25


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of a training step: what any micro batch needs, and what comes with its sequences.

    Each sequence keeps `kept` for the backward pass. On top of it there is either the head, with
    `head` of each sequence and its `logits`, of all of which no more than a `chunk` is there at a
    time; or a layer's backward pass, with `working` of each sequence.
    """

    fixed: int
    kept: int
    working: int = 0
    head: int = 0
    logits: int = 0
    chunk: int = 0

    def activations(self, micro_batch_size: int) -> int:
        """Bytes that come with the sequences of a micro batch."""
        head = micro_batch_size * self.head + min(micro_batch_size * self.logits, self.chunk)
        return micro_batch_size * self.kept + max(micro_batch_size * self.working, head)

    def total(self, micro_batch_size: int) -> int:
        """Bytes at this micro batch size."""
        return self.fixed + self.activations(micro_batch_size)

    def largest_micro_batch(self, available: int, local_batch_size: int, below: int) -> int | None:
        """Largest divisor of the local batch, smaller than `below`, that fits; None if none."""
        fitting = [
            size
            for size in range(1, below)
            if local_batch_size % size == 0 and self.total(size) <= available
        ]
        return max(fitting) if fitting else None


@dataclass(frozen=True)
class FixedBytes:
    """Bytes of a training step that do not depend on the batch."""

    weights: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.gradients + self.optimizer


def count_fixed(config: GPTConfig, *, half: bool = False, share: Share = WHOLE) -> FixedBytes:
    """Count weights, gradients and AdamW's state of one card.

    16 bytes a parameter in float32; 18 with halves: 2 + 2, and 14 of float32 master, moments and
    casts. Sharing divides each by its number of data parallel cards (ZeRO, Rajbhandari et al. 2019,
    arXiv:1910.02054); shared gradients and weights are whole for one layer, or the table, at a
    time.
    """
    parameters, width = count_share(config, share), HALF if half else FLOAT

    def divide(cards: int) -> int:
        if cards == 1:
            return width * parameters
        unit = largest_unit(config, share)
        return width * min(parameters, -(-parameters // cards) + unit)

    return FixedBytes(
        weights=divide(share.weight_cards),
        gradients=divide(share.gradient_cards),
        optimizer=-(-parameters // share.state_cards) * (STATE_HALF if half else STATE),
    )


def estimate_memory(
    config: GPTConfig,
    seq_len: int,
    *,
    half: bool = False,
    on_host: bool = False,
    fused: bool = False,
    share: Share = WHOLE,
) -> MemoryEstimate:
    """Estimate the peak of training with AdamW in float32; `half` is O2 with float32 masters.

    Fixed is `count_fixed`. The rest is what Paddle keeps for the backward pass, counted tensor by
    tensor, and the largest working set on top of it. `on_host` adds what the C library's allocator
    wastes on a CPU; Paddle's own allocators on devices reuse their blocks. `fused`: our own
    operators (`models.kernels`) compute what they can, in float32.
    """
    width = HALF if half else FLOAT
    fused = fused and not half
    layer = _count_layer(config, seq_len, share, fused=fused)
    kept = width * (share.in_flight * len(share.layers(config))) * layer.kept
    working = width * (layer.rebuilt + layer.working)
    head = logits = 0
    if share.holds_head(config):
        # Logits, which the kernel's softmax and gradient take the place of; Paddle's operators have
        # logits and softmax, or gradient, in float16 with a float32 copy.
        logits = config.vocab_size * (FLOAT if fused else width + FLOAT + (FLOAT if half else 0))
        # Between the factors of the embeddings: of the lookup, of the logits, and a gradient.
        head = (2 * config.hidden_size + 3 * (config.embedding_rank or 0)) * width
    waste = HOST_WASTE if on_host else 1.0
    return MemoryEstimate(
        fixed=round(waste * count_fixed(config, half=half, share=share).total),
        kept=round(waste * seq_len * kept),
        working=round(waste * seq_len * working),
        head=round(waste * seq_len * head),
        logits=round(waste * seq_len * logits),
        chunk=round(waste * count_chunk_tokens(config.vocab_size, kernel=fused) * logits),
    )


@dataclass(frozen=True)
class _LayerCount:
    """Values per token: kept for the backward pass by every layer, rebuilt and worked on by one."""

    kept: float
    rebuilt: float
    working: float


def _count_layer(config: GPTConfig, seq_len: int, share: Share, *, fused: bool) -> _LayerCount:
    """Count what a decoder layer keeps, in values per token.

    Of the residual width D: inputs and outputs of both norms (4), scaled queries, keys and values
    (3) and the joined heads (1); dropout masks are bytes, a quarter each. Of the score square H·T:
    the softmax, and with dropout also its result and mask. Our own operators keep two values a head
    in the place of the square, and no masks. Of the hidden width F, before and after GELU, and of
    rank R, between the factors of either matrix: what `Cost.kept` says. Of attention the latter as
    well. The layer that keeps most stands for all. Split feed-forwards are never fused.

    Tensor parallel cards divide what belongs to heads and hidden units; norms and masks only with
    `Share.sequence` (Korthikanti et al. 2022, arXiv:2205.05198). Paddle then keeps the gathered
    input of a split matrix all the same; thin factors take their part of the sequence.
    """
    d, cards = config.hidden_size, share.tensor
    residual = d // cards if share.sequence else d
    inner, heads = d // cards, config.num_attention_heads // cards
    masks = 0.5 * residual if config.hidden_dropout_prob and not fused else 0.0
    squares = 2.25 if config.attention_probs_dropout_prob else 1.0
    in_blocks = fused and d <= config.num_attention_heads * LARGEST_HEAD_SIZE
    scores = 2.0 * heads if in_blocks else squares * heads * seq_len
    wide = max(cost.kept(fused=fused and cards == 1) for cost in share_costs(config, share))
    narrow = config.attention_rank or 0  # between the factors of one projection
    inputs = (residual if narrow else d) + (residual if _is_thin(config, share) else d)
    everything = 2 * residual + inputs + 4 * inner + 2 * narrow + masks + scores + wide
    kept, rebuilt = everything, 0.0
    if config.use_recompute:
        kept, rebuilt = {
            "full": (residual, everything),
            "full_attn": (
                2 * residual + inputs + masks + wide,
                4 * inner + 2 * narrow + scores,
            ),
            "core_attn": (everything - scores, scores),
        }[config.recompute_granularity]
    # Working sets seen in Paddle 3.3's backward pass: of the residual width, of the hidden width,
    # and of attention, whose gradients come when the layer's wide part is gone already.
    working = max(5.2 * d, wide / 2 + 3.2 * d)
    if not in_blocks:
        squares = 2.3 + (0.8 if rebuilt > scores else 0.0)
        squares -= 1.0 if config.attention_probs_dropout_prob else 0.0
        working = max(working, squares * heads * seq_len - wide)
    return _LayerCount(kept, rebuilt, working)


def _is_thin(config: GPTConfig, share: Share) -> bool:
    """Whether every feed-forward of the share begins with a thin factor, whole on every card."""
    shape, specs = config.ffn_shape, config.ffn_specs
    return all(
        summed_width(specs[index], shape) < shape.hidden_size for index in share.layers(config)
    )
