"""Self-guided training: a dense feed-forward leads a cheap one through the first part of a run.

    y = α · dense(x) + (1 - α) · inner(x),    α = (1 + cos(π · share / guided_share)) / 2

Wei et al. 2024 (arXiv:2406.16450; github.com/CLAIRE-Labo/StructuredFFN, 59551743). `share` is how
much of the run is done: α falls from 1 to 0 over its first `guided_share`, and is 0 from there on.
The dense branch starts as the same function as the inner one (W = A·B). Where the source mixes
either matrix of the feed-forward, whole feed-forwards are mixed here, so that a kind with fewer
hidden units can be guided too.

`reduce_flops` is the source's option of that name, with its formula: a step runs the dense branch
with probability α, and then y is the mix above; the other steps are y = inner(x). The expected
output is α²·dense + (1 - α²)·inner: guidance fades sooner than without the option.

Shape legend: B batch, T time, D hidden_size, F ffn_hidden_size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from paddle import Tensor

from models.ffn.base import FFN, Cost, NotMergeable, Shape
from models.ffn.dense import DenseFFN
from models.ffn.moments import MergedParameter, MergesState, MovesMerged, copy_state


@dataclass(frozen=True)
class GuidedOptions:
    """Options of `Model.ffn` for kind `guided`.

    `inner` names the kind that is guided; `rank`, `width` and `blocks` are its options, None for
    its own default.
    """

    inner: str = "low_rank"
    rank: int | None = None
    width: int | None = None
    blocks: int | None = None
    guided_share: float = 0.5
    reduce_flops: bool = True


class GuidedFFN(FFN):
    """A cheap feed-forward `inner` and its guide `dense`; merged, it is what `inner` merges to.

    The dense branch takes part in training mode only, and only after `set_progress` said so: in
    eval mode, and by default, the layer is `inner` alone.

    Raises `ValueError` for a kind that cannot be guided or does not have an option that was given,
    and for a `guided_share` outside 0 (excluded) to 1.
    """

    kind = "guided"
    Options = GuidedOptions

    def __init__(self, shape: Shape, options: GuidedOptions) -> None:
        super().__init__(shape, options)
        inner_class, inner_options = _find_inner(options)
        self.options = options
        self.inner = inner_class(shape, inner_options)
        # A model built without values (`paddle.LazyGuard`) has none to start from.
        lazy = any(not parameter._is_initialized() for parameter in self.inner.parameters())
        self.dense = DenseFFN(shape) if lazy else _as_dense(self.inner)
        self._dense_share = 0.0

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Map [B, T, D] to [B, T, D]."""
        inner = self.inner(x_BTD)
        if not (self.training and self._dense_share):
            return inner
        return self._dense_share * self.dense(x_BTD) + (1.0 - self._dense_share) * inner

    def set_progress(self, share: float, draw: float) -> None:
        """Set the dense branch's weight for the coming step (see the module), and inner's own."""
        alpha = guidance(share, self.options.guided_share)
        runs = draw < alpha or not self.options.reduce_flops
        self._dense_share = alpha if runs else 0.0
        self.inner.set_progress(share, draw)

    def auxiliary_loss(self) -> Tensor | None:
        """Return the inner feed-forward's."""
        return self.inner.auxiliary_loss()

    @classmethod
    def cost(cls, shape: Shape, options: GuidedOptions) -> Cost:
        """Parameters of both branches, forward FLOPs of the inner one alone, kept values of both.

        The FLOPs are those of the part of the run that is not guided, and of the model that comes
        out. On the average over a run the dense branch adds 4DF·guided_share a token, and with
        `reduce_flops` 4DF·guided_share/2 (the integral of α).
        """
        inner_class, inner_options = _find_inner(options)
        inner = inner_class.cost(shape, inner_options)
        dense = DenseFFN.cost(shape, DenseFFN.Options())
        return Cost(
            parameters=inner.parameters + dense.parameters,
            flops_per_token=inner.flops_per_token,
            kept_per_token=inner.kept_per_token + dense.kept_per_token,
            kept_fused=inner.kept(fused=True) + dense.kept(fused=True),
        )

    def merge(self) -> FFN:
        """Return what the inner feed-forward merges to; the dense branch goes."""
        return self.inner.merge()

    def merged_parameters(self) -> dict[str, MergedParameter]:
        """Name the dense form's parameters, and those of both branches whose place they take.

        This and `merge_state` are `models.ffn.moments.MergesState`: the inner feed-forward's part
        of the optimizer's state is handed over, biases included; the dense branch's is dropped.
        """
        inner = dict(self.inner.named_parameters())
        merged = {
            name: MergedParameter(tuple(inner[name].shape), (name,)) for name in self._kept_names()
        }
        for prefix, layer in self._merging_parts():
            for name, parameter in layer.merged_parameters().items():
                sources = tuple(prefix + source for source in parameter.sources)
                merged[prefix + name] = MergedParameter(parameter.shape, sources)
        return {
            name: MergedParameter(
                parameter.shape,
                (*(f"inner.{source}" for source in parameter.sources), f"dense.{name}"),
            )
            for name, parameter in merged.items()
        }

    def merge_state(self, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the dense form's moments (and float32 masters, if any), in float64."""
        merged: dict[str, np.ndarray] = {}
        for prefix, layer in self._merging_parts():
            place = f"inner.{prefix}"
            below = {
                name.removeprefix(place): array
                for name, array in state.items()
                if name.startswith(place)
            }
            try:
                lifted = layer.merge_state(below)
            except KeyError as missing:
                raise KeyError(f"{place}{missing.args[0]}") from None
            merged.update((prefix + name, array) for name, array in lifted.items())
        for name in self._kept_names():
            merged.update(copy_state(state, f"inner.{name}", name))
        return merged

    def merged_rates(self) -> dict[str, float]:
        """Return those of the inner feed-forward: see `models.ffn.moments.MovesMerged`."""
        return {
            prefix + name: rate
            for prefix, layer in self._merging_parts()
            if isinstance(layer, MovesMerged)
            for name, rate in layer.merged_rates().items()
        }

    def _merging_parts(self) -> list[tuple[str, MergesState]]:
        """The inner feed-forward, or its layers, whose state is not simply kept: path, layer."""
        if isinstance(self.inner, MergesState):
            return [("", self.inner)]
        return [
            (f"{name}.", layer)
            for name, layer in self.inner.named_sublayers()
            if isinstance(layer, MergesState)
        ]

    def _kept_names(self) -> list[str]:
        """Parameters of the inner feed-forward that its dense form has under the same name."""
        gone = {
            prefix + source
            for prefix, layer in self._merging_parts()
            for parameter in layer.merged_parameters().values()
            for source in parameter.sources
        }
        return [name for name, _ in self.inner.named_parameters() if name not in gone]


def guidance(share: float, guided_share: float) -> float:
    """Return α, the dense branch's weight when `share` of the run is done: 1 falling to 0."""
    if share >= guided_share:
        return 0.0
    return 0.5 * (1.0 + math.cos(math.pi * share / guided_share))


def _find_inner(options: GuidedOptions) -> tuple[type[FFN], Any]:
    """Return class and options of the guided kind."""
    # The registry lists this kind, so it cannot be imported before this module is.
    from models.ffn.registry import find_kind

    if not 0.0 < options.guided_share <= 1.0:
        raise ValueError(f"guided_share {options.guided_share} is outside 0 to 1")
    own = {"rank": options.rank, "width": options.width, "blocks": options.blocks}
    given = {name: value for name, value in own.items() if value is not None}
    inner_class, inner_options = find_kind({"kind": options.inner, **given})
    if issubclass(inner_class, (DenseFFN, GuidedFFN)):
        raise ValueError(f"kind '{options.inner}' cannot be guided: name a cheaper one")
    return inner_class, inner_options


def _as_dense(inner: FFN) -> FFN:
    try:
        return inner.merge()
    except NotMergeable as error:
        raise ValueError(f"kind '{inner.kind}' cannot be guided: {error}") from error
