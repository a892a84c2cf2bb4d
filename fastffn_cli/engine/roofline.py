"""How long a training step should take on a chip: a roofline model, from shapes alone.

Every operation takes the longest of three times: its matrix FLOPs, its vector instructions and its
memory traffic, each over what the chip attains of it (`chips`); operations follow one another.
Williams et al. 2009 (doi:10.1145/1498765.1498785). It is an estimate for machines that one does not
have: time of launches, of data, of communication, and a compiler's fusions are not in it.

What is assumed, on top of the chip's shares:

* activations and weights of 16 bits; AdamW moves 28 bytes a parameter, once an update;
* a product with a side below 64 runs at side/64 of the matrix speed;
* GELU takes 24 vector instructions an element forward and 34 backward, and its bias is added in the
  product before it; a block-diagonal product copies its input and output once, to sort them;
* `fused=False`, as `models.gpt` is written: the [T, T] scores of every head and the [T, V] logits
  lie in memory, 13 passes over the scores (17 with dropout) and 34 bytes a logit (32-bit softmax);
* `fused=True`: neither ever does (flash attention, chunked cross entropy); the FLOPs stay;
* other dropout is part of the operation beside it.

Shape legend: N tokens of a micro batch, D hidden_size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from paddle import LazyGuard, nn

from fastffn_cli.engine.chips import Chip
from models.gpt import GPT, GPTConfig, count_parameters, flops_per_token

ELEMENT = 2  # bytes
OPTIMIZER_BYTES = 28  # a parameter: master, m and v read and written in 32 bits, gradient read
FULL_SPEED_SIDE = 64
GELU_FORWARD, GELU_BACKWARD = 24, 34
SCORE_PASSES, DROPOUT_PASSES = 13, 4
LOGIT_BYTES = 34


@dataclass(frozen=True)
class Product:
    """A product of [N, blocks * inner] with `blocks` matrices [inner, outer]."""

    inner: int
    outer: int
    blocks: int = 1

    @property
    def flops(self) -> int:
        """Forward FLOPs of one token."""
        return 2 * self.inner * self.outer * self.blocks


@dataclass(frozen=True)
class StepEstimate:
    """Estimated seconds of one update, by the part of the model that takes them."""

    ffn: float
    attention: float
    head: float
    norms: float
    optimizer: float

    @property
    def total(self) -> float:
        """Seconds of the whole update."""
        return self.ffn + self.attention + self.head + self.norms + self.optimizer


def estimate_step(
    config: GPTConfig,
    chip: Chip,
    *,
    seq_len: int,
    micro_batch_size: int,
    accumulate_steps: int = 1,
    fused: bool = False,
) -> StepEstimate:
    """Estimate one update of `micro_batch_size` * `accumulate_steps` sequences.

    Raises `ValueError` for a model whose FLOPs are not those of its weight matrices, each used once
    a token (`moe`, `guided`).
    """
    with LazyGuard():
        model = GPT(config)
    tokens = micro_batch_size * seq_len
    _check_counted(model, seq_len)
    ffn = attention = 0.0
    for layer in model.layers:
        ffn += _ffn(layer.ffn, tokens, chip)
        attention += _attention(config, layer.self_attn, tokens, seq_len, chip, fused=fused)
    return StepEstimate(
        ffn=accumulate_steps * ffn,
        attention=accumulate_steps * attention,
        head=accumulate_steps * _head(config, model, tokens, chip, fused=fused),
        norms=accumulate_steps * _norms(config, tokens, chip),
        optimizer=_seconds(chip, traffic=OPTIMIZER_BYTES * count_parameters(config)),
    )


def whole_run_speedup(stage1: float, share: float) -> float:
    """Speed-up of a run that trains `share` of its steps `stage1` times as fast as the rest."""
    return 1 / (1 - share * (1 - 1 / stage1))


def products(layer: nn.Layer) -> list[Product]:
    """Return the products of a layer whose weights [in, out] or [blocks, in, out] are used once."""
    shapes = [list(weight.shape) for weight in layer.parameters() if len(weight.shape) > 1]
    return [Product(*shape[-2:], *shape[:-2]) for shape in shapes]


def _check_counted(model: GPT, seq_len: int) -> None:
    config = model.config
    scores = 4 * seq_len * config.hidden_size * config.num_layers
    counted = scores + sum(
        product.flops
        for product in [*products(model.word_embeddings), *_lookup(model.word_embeddings)]
    )
    for layer in model.layers:
        counted += sum(product.flops for product in products(layer.ffn))
        counted += sum(product.flops for product in products(layer.self_attn))
    if counted != (closed_form := flops_per_token(config, seq_len)):
        raise ValueError(
            f"the weight matrices make {counted} FLOPs a token, the model {closed_form}: "
            "its step cannot be estimated"
        )


def _ffn(layer: nn.Layer, tokens: int, chip: Chip) -> float:
    first = products(layer.linear1)
    hidden = tokens * first[-1].outer * first[-1].blocks
    pieces = ELEMENT * hidden
    return (
        _products([*first, *products(layer.linear2)], tokens, chip)
        + _seconds(chip, lanes=GELU_FORWARD * hidden, traffic=2 * pieces)
        + _seconds(chip, lanes=GELU_BACKWARD * hidden, traffic=3 * pieces)
        + _seconds(chip, traffic=pieces)  # the gradient of the bias
    )


def _attention(
    config: GPTConfig, layer: nn.Layer, tokens: int, seq_len: int, chip: Chip, *, fused: bool
) -> float:
    heads, width = config.num_attention_heads, config.hidden_size
    flops = 3 * 4 * seq_len * width * tokens
    projections = _products([*products(layer.qkv_proj), *products(layer.out_proj)], tokens, chip)
    if fused:
        return projections + _seconds(chip, flops=flops, traffic=16 * ELEMENT * tokens * width)
    passes = SCORE_PASSES + (DROPOUT_PASSES if config.attention_probs_dropout_prob else 0)
    # Heads are split off and joined again, forward and backward: 4 D values read and written.
    copies = 16 * ELEMENT * tokens * width
    return (
        projections
        + _seconds(chip, flops=flops, side=width // heads)
        + _seconds(chip, traffic=passes * ELEMENT * tokens * seq_len * heads)
        + _seconds(chip, traffic=copies)
    )


def _head(config: GPTConfig, model: GPT, tokens: int, chip: Chip, *, fused: bool) -> float:
    # The table of the embeddings is used a second time as the head, then transposed.
    weights = products(model.word_embeddings)
    lookup = _products(_lookup(model.word_embeddings), tokens, chip)
    flops = 3 * tokens * sum(product.flops for product in weights)
    traffic = 3 * ELEMENT * sum(product.inner * product.outer for product in weights)
    side = min(min(product.inner, product.outer) for product in weights)
    seconds = lookup + _seconds(chip, flops=flops, traffic=traffic, side=side)
    if not fused:
        seconds += _seconds(chip, traffic=LOGIT_BYTES * tokens * config.vocab_size)
    return seconds


def _lookup(table: nn.Layer) -> list[Product]:
    """Return the products of a lookup: of two factors, rows of the first one are only read."""
    return products(table)[1:]


def _norms(config: GPTConfig, tokens: int, chip: Chip) -> float:
    """Two norms and two residual sums a layer, each read and written forward and backward."""
    values = ELEMENT * tokens * config.hidden_size
    norms = (2 * config.num_layers + 1) * 5 * values
    sums = 2 * config.num_layers * 5 * values
    return _seconds(chip, traffic=norms + sums)


def _products(chain: Iterable[Product], tokens: int, chip: Chip) -> float:
    """Forward, gradient of the input, gradient of the weights: three products of one shape."""
    seconds = 0.0
    for product in chain:
        inputs = tokens * product.inner * product.blocks
        outputs = tokens * product.outer * product.blocks
        weights = product.inner * product.outer * product.blocks
        once = _seconds(
            chip,
            flops=tokens * product.flops,
            traffic=ELEMENT * (inputs + outputs + weights),
            side=min(product.inner, product.outer),
        )
        seconds += 3 * once
        if product.blocks > 1:
            seconds += _seconds(chip, traffic=4 * ELEMENT * (inputs + outputs))
    return seconds


def _seconds(
    chip: Chip,
    *,
    flops: float = 0.0,
    lanes: float = 0.0,
    traffic: float = 0.0,
    side: int = FULL_SPEED_SIDE,
) -> float:
    speed = chip.matrix_flops * chip.matrix_share * min(1.0, side / FULL_SPEED_SIDE)
    return max(
        flops / speed,
        lanes / chip.lane_rate,
        traffic / (chip.bandwidth * chip.bandwidth_share),
    )
