"""What one card of several holds of a model and computes of its step, from shapes alone.

Which axes are split is Megatron-LM's choice (Shoeybi et al. 2019, arXiv:1909.08053) inside the
layers: the heads of attention, the hidden units of a feed-forward. Of two thin factors only the
side that faces the hidden units is split; the other one stays whole on every card, so that what the
cards add up is rank-sized. The table of the tokens is whole on every card, as MindFormers' GPT-2
has it (`vocab_emb_dp`): the 50,257 rows of GPT-2's divide by 29 and 1733 alone. Memory (`memory`)
and time (`roofline`) of a card follow from its share; the default share is the whole of it, on one
card.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from models import ffn
from models.ffn.base import Cost, Shape
from models.ffn.narrow import choose_width
from models.gpt import GPTConfig, count_weights

# Kinds that are split along their hidden units: F, or those of their own `width`.
SPLIT_ALONG_F = ("dense", "low_rank", "low_rank_activation")
SPLIT_ALONG_WIDTH = ("narrow", "thin")


@dataclass(frozen=True)
class Share:
    """One card's part of a model and of its training step.

    `first_layer` up to `end_layer` (excluded; None: the last one included) are the decoder layers
    of its pipeline stage; embeddings go with the first layer, final norm and head with the last.
    `tensor` cards split heads and hidden units; with `sequence` they split what lies between along
    time as well. Activations of `in_flight` micro batches wait for their backward
    pass. `state_cards`, `gradient_cards` and `weight_cards` share optimizer state, gradients and
    weights among data parallel cards.
    """

    first_layer: int = 0
    end_layer: int | None = None
    tensor: int = 1
    sequence: bool = False
    in_flight: int = 1
    state_cards: int = 1
    gradient_cards: int = 1
    weight_cards: int = 1

    def layers(self, config: GPTConfig) -> range:
        """Indices of the decoder layers."""
        return range(config.num_layers)[self.first_layer : self.end_layer]

    def holds_embeddings(self) -> bool:
        """Whether the tables of tokens and positions are looked up here."""
        return self.first_layer == 0

    def holds_head(self, config: GPTConfig) -> bool:
        """Whether the final norm and the head are here."""
        return self.end_layer is None or self.end_layer >= config.num_layers


WHOLE = Share()


def hidden_units(spec: Mapping[str, Any], shape: Shape) -> int | None:
    """Hidden units that a feed-forward is split along; None for a kind that is not split."""
    kind, options = spec.get("kind", "dense"), spec.get("width")
    if kind in SPLIT_ALONG_F:
        return shape.ffn_hidden_size
    return choose_width(shape, options) if kind in SPLIT_ALONG_WIDTH else None


def summed_width(spec: Mapping[str, Any], shape: Shape) -> int:
    """Values a token that cards add up for a feed-forward they split: its rank, or D."""
    _, options = ffn.find_kind(spec)
    return getattr(options, "rank", None) or shape.hidden_size


def share_costs(config: GPTConfig, share: Share) -> list[Cost]:
    """Cost of each of the share's feed-forwards: that of one with a part of the hidden units."""
    specs = config.ffn_specs
    return [
        _split_cost(tuple(sorted(specs[index].items())), config.ffn_shape, share.tensor)
        for index in share.layers(config)
    ]


@lru_cache(maxsize=1024)
def _split_cost(items: tuple[tuple[str, Any], ...], shape: Shape, tensor: int) -> Cost:
    spec = dict(items)
    if tensor == 1:
        return ffn.cost(spec, shape)
    units = hidden_units(spec, shape)
    if units is None or units % tensor:
        raise ValueError(f"feed-forward {spec} of {units} hidden units on {tensor} cards")
    if spec.get("kind", "dense") in SPLIT_ALONG_WIDTH:
        return ffn.cost({**spec, "width": units // tensor}, shape)
    return ffn.cost(spec, replace(shape, ffn_hidden_size=units // tensor))


def count_share(config: GPTConfig, share: Share) -> int:
    """Trainable values of the stage on one of its `tensor` cards, before data parallel sharing.

    `models.gpt.count_parameters` for the whole. The head of a pipeline's last stage has a copy of
    the tied table.
    """
    per_layer = count_attention(config, share.tensor) + 4 * config.hidden_size
    costs = share_costs(config, share)
    total = len(costs) * per_layer + sum(cost.parameters for cost in costs)
    table = count_table(config)
    if share.holds_embeddings():
        total += table + config.max_position_embeddings * config.hidden_size
    if share.holds_head(config):
        total += 2 * config.hidden_size + (0 if share.holds_embeddings() else table)
    return total


def count_attention(config: GPTConfig, tensor: int) -> int:
    """Trainable values of one attention on one of `tensor` cards that split its heads."""
    d, rank, inner = config.hidden_size, config.attention_rank, config.hidden_size // tensor
    return count_weights(d, 3 * inner, rank) + 3 * inner + count_weights(inner, d, rank) + d


def count_table(config: GPTConfig) -> int:
    """Trainable values of the token table on one card."""
    return count_weights(config.vocab_size, config.hidden_size, config.embedding_rank)


def largest_unit(config: GPTConfig, share: Share) -> int:
    """Trainable values of the largest piece that is made whole at a time: a layer or the table."""
    per_layer = count_attention(config, share.tensor) + 4 * config.hidden_size
    units = [per_layer + cost.parameters for cost in share_costs(config, share)]
    if share.holds_embeddings() or share.holds_head(config):
        units.append(count_table(config))
    return max(units)
