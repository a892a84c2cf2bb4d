"""Replace feed-forwards inside a model, and fold them back: two functions for any Paddle model.

`merge` is a protocol, not a list of types: any sublayer with a `merge()` method is replaced by what
it returns (the idea of mlx-lm's `fuse`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from paddle import nn

from models.ffn.base import FFN
from models.ffn.dense import DenseFFN
from models.ffn.registry import find_kind, layer_specs


@dataclass(frozen=True)
class Replacement:
    """One feed-forward that was replaced.

    `name` is the path of the layer that holds it; `errors` are ‖W - W'‖/‖W‖ (Frobenius) of its
    first and second matrix, whose dropped hidden units count as zeros.
    """

    name: str
    errors: tuple[float, float]


def approximate(
    model: nn.Layer, kind: str = "low_rank", *, init_std: float = 0.02, **options: Any
) -> list[Replacement]:
    """Replace every (Linear, activation, Linear) feed-forward of `model` in place.

    Found are layers that hold such a pair as `linear1` and `linear2` (`paddle.nn.
    TransformerEncoderLayer`, our `DenseFFN`) and `nn.Sequential`s of Linear, activation, Linear.
    Activations, dropouts and everything else stay as they are.

    The options are those of the kind, `dense_layers` and `layer_ranks` (`registry.layer_specs`),
    which count the feed-forwards in the order in which they are found. Rules of learning rates go
    by a start with `init_std`, as they do in a model that is built of the kind.

    Raises `ValueError` for an unknown kind, a bad option, a model without feed-forwards, or one
    with feed-forwards of a kind of ours other than dense.
    """
    spec = {"kind": kind, **options}
    _refuse_cheap(model)
    pairs = list(_find_pairs(model))
    if not pairs:
        raise ValueError("the model has no (Linear, activation, Linear) feed-forward to replace")
    specs = layer_specs(spec, len(pairs))
    kinds = [find_kind(each) for each in specs]
    replacements = []
    for (name, holder, *attributes), each, (layer_class, parsed) in zip(
        pairs, specs, kinds, strict=True
    ):
        if each["kind"] != kind:  # one that stays dense
            continue
        linears = getattr(holder, attributes[0]), getattr(holder, attributes[1])
        stand_ins = layer_class.approximate_pair(*linears, parsed, init_std)
        for attribute, stand_in in zip(attributes, stand_ins, strict=True):
            setattr(holder, attribute, stand_in)
        replacements.append(Replacement(name, layer_class.pair_errors(linears, stand_ins)))
    _announce(model, spec)
    return replacements


def merge(model: nn.Layer) -> list[str]:
    """Replace every mergeable sublayer by its dense form, in place; return their paths.

    Raises `NotMergeable`, before anything is changed, when a layer has no dense form.
    """
    merged = list(_merge_children(model, ""))
    for _, parent, name, layer in merged:
        setattr(parent, name, layer)
    _announce(model, {"kind": "dense"})
    return [path for path, *_ in merged]


def _refuse_cheap(model: nn.Layer) -> None:
    # The pairs inside such a layer (experts, a guiding branch) are no feed-forwards of the model.
    for name, layer in model.named_sublayers(include_self=True):
        if isinstance(layer, FFN) and not isinstance(layer, DenseFFN):
            raise ValueError(
                f"feed-forward {name or 'given'} is of kind '{layer.kind}' already, and only dense "
                "ones are approximated"
            )


def _find_pairs(model: nn.Layer) -> Iterator[tuple[str, nn.Layer, str, str]]:
    for name, holder in model.named_sublayers(include_self=True):
        if isinstance(holder, nn.Sequential):
            pair = _pair_in_sequential(holder)
        else:
            pair = ("linear1", "linear2")
        if pair is None:
            continue
        linear1, linear2 = (getattr(holder, attribute, None) for attribute in pair)
        if _is_feed_forward(linear1, linear2):
            yield name, holder, *pair


def _pair_in_sequential(layers: nn.Sequential) -> tuple[str, str] | None:
    named = list(layers.named_children())
    linears = [index for index, (_, layer) in enumerate(named) if isinstance(layer, nn.Linear)]
    if len(linears) != 2:
        return None
    between = [layer for _, layer in named[linears[0] + 1 : linears[1]]]
    activations = [layer for layer in between if not isinstance(layer, nn.Dropout)]
    if len(activations) != 1 or list(activations[0].parameters()):
        return None
    return named[linears[0]][0], named[linears[1]][0]


def _is_feed_forward(linear1: object, linear2: object) -> bool:
    if not isinstance(linear1, nn.Linear) or not isinstance(linear2, nn.Linear):
        return False
    inside, outside = linear1.weight.shape, linear2.weight.shape
    return inside[1] == outside[0] and inside[0] == outside[1]


def _merge_children(parent: nn.Layer, prefix: str) -> Iterator[tuple[str, nn.Layer, str, nn.Layer]]:
    for name, child in parent.named_children():
        path = f"{prefix}{name}"
        merge_child = getattr(child, "merge", None)
        merged = merge_child() if callable(merge_child) else child
        if merged is not child:
            yield path, parent, name, merged
        else:  # nothing to merge, or dense already: perhaps further inside
            yield from _merge_children(child, f"{path}.")


def _announce(model: nn.Layer, spec: Mapping[str, Any]) -> None:
    """Tell a model that keeps its feed-forward kind in its configuration that it changed."""
    listener = getattr(model, "on_ffn_replaced", None)
    if listener is not None:
        listener(dict(spec))
