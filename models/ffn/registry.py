"""The kinds of feed-forward layer, by the name that `Model.ffn.kind` uses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.ffn.base import FFN, Cost, Shape
from models.ffn.block_dense import BlockDenseFFN
from models.ffn.block_diagonal import BlockDiagonalFFN
from models.ffn.dense import DenseFFN
from models.ffn.guided import GuidedFFN
from models.ffn.low_rank import LowRankFFN
from models.ffn.low_rank_activation import LowRankActivationFFN
from models.ffn.moe import MoEFFN
from models.ffn.monarch import MonarchFFN
from models.ffn.narrow import NarrowFFN
from models.ffn.thin import ThinFFN

KINDS: dict[str, type[FFN]] = {
    layer.kind: layer
    for layer in (
        DenseFFN,
        LowRankFFN,
        NarrowFFN,
        ThinFFN,
        LowRankActivationFFN,
        MoEFFN,
        GuidedFFN,
        MonarchFFN,
        BlockDenseFFN,
        BlockDiagonalFFN,
    )
}


def find_kind(spec: Mapping[str, Any]) -> tuple[type[FFN], Any]:
    """Return the class and the options object of a spec like `{"kind": "low_rank", "rank": 8}`.

    Raises `ValueError` for an unknown kind or an option that the kind does not have.
    """
    options = dict(spec)
    name = options.pop("kind", "dense")
    if name not in KINDS:
        raise ValueError(f"unknown feed-forward kind '{name}'; there are {', '.join(KINDS)}")
    layer = KINDS[name]
    try:
        return layer, layer.Options(**options)
    except TypeError as error:
        known = ", ".join(layer.Options.__dataclass_fields__) or "none"
        raise ValueError(f"options of feed-forward kind '{name}': {known} ({error})") from None


def layer_specs(spec: Mapping[str, Any], num_layers: int) -> list[dict[str, Any]]:
    """Return the spec of each layer of a model.

    `dense_layers` (indices, negative ones from the end) stay dense; `layer_ranks` has a rank for
    each layer. Raises `ValueError` for a layer that there is not, or another number of ranks.
    """
    common = dict(spec)
    stay_dense = common.pop("dense_layers", ())
    ranks = common.pop("layer_ranks", ())
    if wrong := [index for index in stay_dense if not -num_layers <= index < num_layers]:
        raise ValueError(f"dense_layers names layer {wrong[0]} of {num_layers}")
    if ranks and len(ranks) != num_layers:
        raise ValueError(f"layer_ranks has {len(ranks)} ranks for {num_layers} layers")
    dense = {index % num_layers for index in stay_dense}
    return [
        {"kind": "dense"}
        if index in dense
        else {**common, **({"rank": ranks[index]} if ranks else {})}
        for index in range(num_layers)
    ]


def costs(spec: Mapping[str, Any], shape: Shape, num_layers: int) -> list[Cost]:
    """Closed-form cost of each layer of a model, without building it."""
    return [cost(each, shape) for each in layer_specs(spec, num_layers)]


def is_mergeable(spec: Mapping[str, Any]) -> bool:
    """Whether layers of the spec's kind have a dense form of the same function."""
    return KINDS[spec["kind"]].why_not_mergeable is None


def build(spec: Mapping[str, Any], shape: Shape) -> FFN:
    """Make one feed-forward layer of the spec's kind."""
    layer, options = find_kind(spec)
    return layer(shape, options)


def cost(spec: Mapping[str, Any], shape: Shape) -> Cost:
    """Closed-form parameters and forward FLOPs per token of one layer, without building it."""
    layer, options = find_kind(spec)
    return layer.cost(shape, options)
