"""What a card sends in a training step, by kind, and how long it waits for it.

Bytes are those that leave one card in a ring: of a tensor of n bytes, an all-reduce over k cards
sends 2 (k - 1) / k · n, a reduce-scatter or an all-gather half of that.

Per layer and micro batch, tensor parallel cards all-reduce the outputs of attention and of the
feed-forward forward and the gradients of their inputs backward, [B, T, D] each (Megatron-LM,
Shoeybi et al. 2019, arXiv:1909.08053, section 3); where a layer is recomputed, the outputs once
more. Of thin factors only the side that faces the hidden units is split, so that all of these are
rank-sized: [B, T, R]. Sequence parallelism sends as many bytes in reduce-scatters and all-gathers
(Korthikanti et al. 2022, arXiv:2205.05198), gathers what goes into the head, and the gradient of
what comes out of the embeddings, and all-reduces once a step the gradients of what is whole on
every card and sees a part of time. On a CPU, which has no reduce-scatter, it sends half as much
again between layers.

Data parallel cards all-reduce gradients once a step; with sharded optimizer states they all-gather
the weights as well. Where gradients are shared (stage 2), every micro batch all-reduces them among
those that share them. (ZeRO, Rajbhandari et al. 2019, arXiv:1910.02054, section 7, has
reduce-scatters there, half as many bytes.) Where weights are (stage 3, planned only), every micro
batch reduce-scatters gradients and gathers weights, forward and backward. Neighbouring stages of a
pipeline swap [B, T, D] in float32, an activation one way and a gradient the other (1F1B, Narayanan
et al. 2021, arXiv:2104.04473).

Shape legend: B micro batch, T time, D hidden_size, R rank.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastffn_cli.distributed.layout import Layout
from fastffn_cli.engine.chips import Links
from fastffn_cli.engine.share import (
    Share,
    count_share,
    count_table,
    summed_width,
)
from models.gpt import GPTConfig

FLOAT, HALF = 4, 2


@dataclass(frozen=True)
class Traffic:
    """Bytes that one card sends in a step.

    `all_reduce`, `reduce_scatter` and `all_gather` are of gradients and weights among data parallel
    cards, `tensor` of activations (and whole weights' gradients) among tensor parallel ones,
    `pipeline` of activations between stages, `tied` of the gradient of the table that the first and
    the last stage share.
    """

    all_reduce: int = 0
    reduce_scatter: int = 0
    all_gather: int = 0
    tensor: int = 0
    pipeline: int = 0
    tied: int = 0

    @property
    def total(self) -> int:
        """All kinds together."""
        return self.data + self.tensor + self.pipeline + self.tied

    @property
    def data(self) -> int:
        """Gradients and weights among data parallel cards."""
        return self.all_reduce + self.reduce_scatter + self.all_gather


def count_traffic(model: GPTConfig, seq_len: int, layout: Layout, stage: int) -> Traffic:
    """Count what a card of pipeline stage `stage` sends in a step."""
    share, width = layout.share(model, stage), HALF if layout.half else FLOAT
    grown = layout.model(model)
    weights = width * count_share(model, share)
    rounds = layout.micro_batches
    tokens = rounds * layout.micro_batch_size * seq_len
    values = tokens * width * tensor_values(grown, share)
    if share.sequence:
        values += width * count_summed(model, share)
    sent = layout.micro_batch_size * seq_len * FLOAT * model.hidden_size
    sent //= layout.mp if share.sequence else 1
    ends = layout.pp > 1 and stage in (0, layout.pp - 1)
    return Traffic(
        **_count_data(weights, layout, share),
        tensor=round(_ring(values, layout.mp)),
        pipeline=sent * sum(_count_exchanges(layout, link) for link in (stage - 1, stage)),
        tied=round(_ring(width * count_table(model), 2)) if ends else 0,
    )


def _count_data(weights: int, layout: Layout, share: Share) -> dict[str, int]:
    """Bytes of gradients and weights among data parallel cards."""
    degree, rounds = layout.sharding_degree, layout.micro_batches
    half_ring = weights * (degree - 1) / degree
    between = _ring(weights / degree, layout.dp)  # sums of one's own part
    if share.weight_cards > 1:
        scattered, gathered = half_ring * rounds, 2 * half_ring * rounds
        return {
            "all_reduce": round(between),
            "reduce_scatter": round(scattered),
            "all_gather": round(gathered),
        }
    if share.gradient_cards > 1:
        reduced = 2 * half_ring * rounds + between
    else:
        reduced = _ring(weights, layout.data)
    return {"all_reduce": round(reduced), "all_gather": round(half_ring)}


def _count_exchanges(layout: Layout, link: int) -> int:
    """How often stages `link` and `link` + 1 swap tensors in a step; never where one is missing.

    Each of them sends a tensor each time: while the pipeline fills and drains, one of no meaning.
    """
    if not 0 <= link < layout.pp - 1:
        return 0
    return layout.micro_batches + min(layout.pp - 1 - link, layout.micro_batches)


def tensor_values(model: GPTConfig, share: Share) -> int:
    """Values a token that tensor parallel cards all-reduce, forward and backward, in a stage."""
    if share.tensor == 1:
        return 0
    d, specs = model.hidden_size, model.ffn_specs
    attention = model.attention_rank or d
    rounds = {"full": (3, 3), "full_attn": (3, 2), "core_attn": (2, 2)}
    of_attention, of_ffn = (2, 2)
    if model.use_recompute:
        of_attention, of_ffn = rounds[model.recompute_granularity]
    values = sum(
        of_attention * attention + of_ffn * summed_width(specs[index], model.ffn_shape)
        for index in share.layers(model)
    )
    if share.sequence:  # gathered at either end: half of an all-reduce
        values += (share.holds_embeddings() + share.holds_head(model)) * d // 2
    return values


def count_summed(model: GPTConfig, share: Share) -> int:
    """Trainable values of a stage that are whole on each tensor parallel card, but for the tables.

    Where time is divided, a card has summands of their gradients.
    """
    if share.tensor == 1:
        return 0
    alone = Share(share.first_layer, share.end_layer)
    # A card has the undivided ones and a part of the others: w + s / t, and w + s alone.
    undivided = (share.tensor * count_share(model, share) - count_share(model, alone)) // (
        share.tensor - 1
    )
    if share.holds_embeddings():
        undivided -= model.max_position_embeddings * model.hidden_size
    ends = share.holds_embeddings() or share.holds_head(model)
    return undivided - (count_table(model) if ends else 0)


@dataclass(frozen=True)
class Waiting:
    """Seconds that a card waits for others: of one micro batch, and of the end of a step."""

    micro_batch: float
    step: float


def estimate_waiting(traffic: Traffic, layout: Layout, links: Links) -> Waiting:
    """Estimate the time of a card's traffic; nothing of it is taken to overlap with computing.

    Ranks lie as Paddle's fleet has them: tensor parallel cards side by side, then sharding,
    pipeline and data parallel ones. A group that does not fit into a node is as slow as the way
    between nodes. Latencies are not in it.
    """

    def speed(reach: int) -> float:
        return links.share * (links.within if reach <= links.cards_per_node else links.between)

    mp, sharded = layout.mp, layout.mp * layout.sharding_degree
    stages = sharded * layout.pp
    shared = traffic.reduce_scatter + traffic.all_gather
    return Waiting(
        micro_batch=(traffic.tensor / speed(mp) + traffic.pipeline / speed(stages))
        / layout.micro_batches,
        step=traffic.all_reduce / speed(layout.cards)
        + shared / speed(sharded)
        + traffic.tied / speed(stages),
    )


def _ring(size: float, cards: int) -> float:
    """Bytes that each of `cards` sends to all-reduce `size` bytes."""
    return 2 * (cards - 1) / cards * size
