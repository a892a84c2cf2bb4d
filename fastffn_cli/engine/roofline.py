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
* `fused=False`, operators one after the other: the [T, T] scores of every head and the [T, V]
  logits lie in memory, 13 passes over the scores (17 with dropout) and 34 bytes a logit (32-bit
  softmax);
* `fused=True`: neither ever does; the FLOPs stay. So is attention where a run finds its device's
  fused operator; the chunked loss lies in between, for its chunks pass through memory;
* other dropout is part of the operation beside it;
* recomputing a part takes a third of its time once more: a forward pass.

Shape legend: N tokens of a micro batch, D hidden_size, V vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from paddle import LazyGuard, nn

from fastffn_cli.engine.chips import Chip
from fastffn_cli.engine.share import WHOLE, Share, count_share
from models.gpt import GPT, GPTConfig, flops_per_token

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


Chain = tuple[Product, ...]


@dataclass(frozen=True)
class LayerProducts:
    """The products of a decoder layer, in chains that stand for one dense product each."""

    linear1: Chain
    linear2: Chain
    qkv: Chain
    out: Chain

    def divide(self, cards: int) -> LayerProducts:
        """One of `cards` cards that split hidden units and heads: outputs first, then inputs."""
        return LayerProducts(
            linear1=_divide_outputs(self.linear1, cards),
            linear2=_divide_inputs(self.linear2, cards),
            qkv=_divide_outputs(self.qkv, cards),
            out=_divide_inputs(self.out, cards),
        )


@dataclass(frozen=True)
class ModelProducts:
    """The products of a model: of each decoder layer, and of the table of the tokens."""

    layers: tuple[LayerProducts, ...]
    table: Chain


@dataclass(frozen=True)
class StepEstimate:
    """Estimated seconds of one update, by the part of the model that takes them."""

    ffn: float
    attention: float
    head: float
    norms: float
    optimizer: float
    recompute: float = 0.0

    @property
    def total(self) -> float:
        """Seconds of the whole update."""
        return self.ffn + self.attention + self.head + self.norms + self.optimizer + self.recompute


def read_products(config: GPTConfig, seq_len: int) -> ModelProducts:
    """Return the products of a model, from its layers' shapes; nothing is allocated.

    Raises `ValueError` for a model whose FLOPs are not those of its weight matrices, each used once
    a token (`moe`, `guided`).
    """
    with LazyGuard():
        model = GPT(config)
    _check_counted(model, seq_len)
    return ModelProducts(
        layers=tuple(
            LayerProducts(
                linear1=tuple(products(layer.ffn.linear1)),
                linear2=tuple(products(layer.ffn.linear2)),
                qkv=tuple(products(layer.self_attn.qkv_proj)),
                out=tuple(products(layer.self_attn.out_proj)),
            )
            for layer in model.layers
        ),
        table=tuple(products(model.word_embeddings)),
    )


def estimate_step(
    config: GPTConfig,
    chip: Chip,
    *,
    seq_len: int,
    micro_batch_size: int,
    accumulate_steps: int = 1,
    fused: bool = False,
    share: Share = WHOLE,
    model: ModelProducts | None = None,
) -> StepEstimate:
    """Estimate one update of `micro_batch_size` * `accumulate_steps` sequences on one card.

    A card's `share` of it is what the card computes itself; what it sends and awaits is not in it.
    `model` spares reading the products again. Raises the `ValueError` of `read_products`.
    """
    model = read_products(config, seq_len) if model is None else model
    tokens = micro_batch_size * seq_len
    layers = Counter(model.layers[index] for index in share.layers(config))
    ffn = attention = core = 0.0
    for whole, count in layers.items():
        layer = whole.divide(share.tensor)
        projections = _products([*layer.qkv, *layer.out], tokens, chip)
        scores = _scores(config, share, tokens, seq_len, chip, fused=fused)
        ffn += count * _ffn(layer, tokens, chip)
        attention += count * (projections + scores)
        core += count * scores
    layer_norms = 2 * layers.total()
    norms = _norms(config, tokens, chip, share, count=layer_norms)
    recompute = 0.0
    if config.use_recompute:
        recomputed = {"full": ffn + attention + norms, "full_attn": attention, "core_attn": core}
        recompute = recomputed[config.recompute_granularity] / 3
    if share.holds_head(config):
        norms = _norms(config, tokens, chip, share, count=layer_norms, last=1)
    head = _table(config, model.table, tokens, chip, share, fused=fused)
    updated = -(-count_share(config, share) // share.state_cards)
    return StepEstimate(
        ffn=accumulate_steps * ffn,
        attention=accumulate_steps * attention,
        head=accumulate_steps * head,
        norms=accumulate_steps * norms,
        optimizer=_seconds(chip, traffic=OPTIMIZER_BYTES * updated),
        recompute=accumulate_steps * recompute,
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
        for product in [*products(model.word_embeddings), *products(model.word_embeddings)[1:]]
    )
    for layer in model.layers:
        counted += sum(product.flops for product in products(layer.ffn))
        counted += sum(product.flops for product in products(layer.self_attn))
    if counted != (closed_form := flops_per_token(config, seq_len)):
        raise ValueError(
            f"the weight matrices make {counted} FLOPs a token, the model {closed_form}: "
            "its step cannot be estimated"
        )


def _divide_outputs(chain: Chain, cards: int) -> Chain:
    return (*chain[:-1], replace(chain[-1], outer=chain[-1].outer // cards))


def _divide_inputs(chain: Chain, cards: int) -> Chain:
    return (replace(chain[0], inner=chain[0].inner // cards), *chain[1:])


def _ffn(layer: LayerProducts, tokens: int, chip: Chip) -> float:
    hidden = tokens * layer.linear1[-1].outer * layer.linear1[-1].blocks
    pieces = ELEMENT * hidden
    return (
        _products([*layer.linear1, *layer.linear2], tokens, chip)
        + _seconds(chip, lanes=GELU_FORWARD * hidden, traffic=2 * pieces)
        + _seconds(chip, lanes=GELU_BACKWARD * hidden, traffic=3 * pieces)
        + _seconds(chip, traffic=pieces)  # the gradient of the bias
    )


def _scores(
    config: GPTConfig, share: Share, tokens: int, seq_len: int, chip: Chip, *, fused: bool
) -> float:
    """What lies between the projections of an attention."""
    heads, width = config.num_attention_heads, config.hidden_size // share.tensor
    flops = 3 * 4 * seq_len * width * tokens
    if fused:
        return _seconds(chip, flops=flops, traffic=16 * ELEMENT * tokens * width)
    passes = SCORE_PASSES + (DROPOUT_PASSES if config.attention_probs_dropout_prob else 0)
    # Heads are split off and joined again, forward and backward: 4 D values read and written.
    copies = 16 * ELEMENT * tokens * width
    return (
        _seconds(chip, flops=flops, side=config.hidden_size // heads)
        + _seconds(chip, traffic=passes * ELEMENT * tokens * seq_len * heads // share.tensor)
        + _seconds(chip, traffic=copies)
    )


def _table(
    config: GPTConfig, table: Chain, tokens: int, chip: Chip, share: Share, *, fused: bool
) -> float:
    """The lookup in the table of the embeddings, and its second use as the head, transposed."""
    seconds = 0.0
    if share.holds_embeddings():
        # Of two factors, rows of the first one are only read.
        seconds += _products(table[1:], tokens, chip)
    if not share.holds_head(config):
        return seconds
    flops = 3 * tokens * sum(product.flops for product in table)
    traffic = 3 * ELEMENT * sum(product.inner * product.outer for product in table)
    side = min(min(product.inner, product.outer) for product in table)
    seconds += _seconds(chip, flops=flops, traffic=traffic, side=side)
    if not fused:
        seconds += _seconds(chip, traffic=LOGIT_BYTES * tokens * config.vocab_size)
    return seconds


def _norms(
    config: GPTConfig, tokens: int, chip: Chip, share: Share, *, count: int, last: int = 0
) -> float:
    """Norms, and a residual sum beside all but the last, read and written in both passes."""
    values = ELEMENT * tokens * config.hidden_size
    if share.sequence:
        values //= share.tensor
    return _seconds(chip, traffic=(count + last) * 5 * values + count * 5 * values)


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
