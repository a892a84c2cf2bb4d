"""The kinds of feed-forward layer, by the name that `Model.ffn.kind` uses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.ffn.base import FFN, Cost, Shape
from models.ffn.dense import DenseFFN
from models.ffn.low_rank import LowRankFFN

KINDS: dict[str, type[FFN]] = {layer.kind: layer for layer in (DenseFFN, LowRankFFN)}


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


def build(spec: Mapping[str, Any], shape: Shape) -> FFN:
    """Make one feed-forward layer of the spec's kind."""
    layer, options = find_kind(spec)
    return layer(shape, options)


def cost(spec: Mapping[str, Any], shape: Shape) -> Cost:
    """Closed-form parameters and forward FLOPs per token of one layer, without building it."""
    layer, options = find_kind(spec)
    return layer.cost(shape, options)
