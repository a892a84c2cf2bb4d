"""What every kind of feed-forward layer answers.

Shape legend: B batch, T time, D hidden_size, F ffn_hidden_size, R rank.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
from paddle import Tensor, nn

from models.ffn.parameters import to_float64
from models.kernels.activation import ACTIVATIONS


class NotMergeable(TypeError):
    """The layer cannot be turned into a dense feed-forward that computes the same function."""


@dataclass(frozen=True)
class Shape:
    """The dense feed-forward that a kind stands for: sizes, initial spread, name of activation."""

    hidden_size: int
    ffn_hidden_size: int
    init_std: float = 0.02
    activation: str = "gelu"


@dataclass(frozen=True)
class Cost:
    """Closed-form cost of one feed-forward layer.

    `flops_per_token` counts the forward pass, a multiply-add as two, matrix products only; forward
    and backward together cost three times as much. `kept_per_token` are the values that the
    backward pass needs beside the input: the hidden units before and after GELU, and what lies
    between factors. `kept_fused` are those of a layer that one operator computes
    (`models.kernels`); None: there is no such operator.
    """

    parameters: int
    flops_per_token: int
    kept_per_token: int
    kept_fused: int | None = None

    def kept(self, *, fused: bool) -> int:
        """Return the values that are kept, with our own operators or with Paddle's."""
        return self.kept_fused if fused and self.kept_fused is not None else self.kept_per_token


class FFN(nn.Layer):
    """`linear2(activation(linear1(x)))`; `activation` is a name of `ACTIVATIONS`.

    `gelu` is the tanh form of GELU, as GPT-2, FleetX and FastFFN have it. A kind sets `kind`,
    `Options` (a frozen dataclass whose fields are the YAML keys of `Model.ffn`) and builds
    `linear1` and `linear2` in its own way. Raises `ValueError` for an unknown activation.
    """

    kind: ClassVar[str]
    why_not_mergeable: ClassVar[str | None] = None  # None: `merge` has a dense form to return
    Options: ClassVar[type[Any]]

    linear1: nn.Layer
    linear2: nn.Layer

    def __init__(self, shape: Shape, options: Any) -> None:
        super().__init__()
        if shape.activation not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise ValueError(f"unknown activation '{shape.activation}'; there are {known}")
        self.activation = shape.activation

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Map [B, T, D] to [B, T, D]."""
        fused = find_fused(self.linear1, self.linear2)
        if fused is not None:
            return fused(self.linear1, self.linear2, x_BTD, self.activation)
        return self.linear2(self.activate(self.linear1(x_BTD)))

    def activate(self, hidden: Tensor) -> Tensor:
        """Apply the activation to hidden units of any shape."""
        return ACTIVATIONS[self.activation](hidden)

    @classmethod
    def cost(cls, shape: Shape, options: Any) -> Cost:
        """Parameters and forward FLOPs per token, from the shapes alone."""
        raise NotImplementedError

    @classmethod
    def approximate_pair(
        cls, linear1: nn.Linear, linear2: nn.Linear, options: Any, init_std: float
    ) -> tuple[nn.Layer, nn.Layer]:
        """Return cheap stand-ins for a trained (Linear, activation, Linear) pair.

        They train at the rates of layers that start with `init_std`.
        Raises `TypeError` where the kind has no such construction.
        """
        raise TypeError(f"a trained feed-forward cannot be approximated by kind '{cls.kind}'")

    @classmethod
    def pair_errors(
        cls, linears: tuple[nn.Linear, nn.Linear], stand_ins: tuple[nn.Layer, nn.Layer]
    ) -> tuple[float, float]:
        """Return ‖W - W'‖/‖W‖ (Frobenius) of both matrices of what `approximate_pair` returned."""
        first, second = (
            relative_error(linear, stand_in.dense_weight())
            for linear, stand_in in zip(linears, stand_ins, strict=True)
        )
        return first, second

    def auxiliary_loss(self) -> Tensor | None:
        """Return what the last forward pass adds to the training objective, 0-d, or None."""
        return None

    def set_progress(self, share: float, draw: float) -> None:
        """Tell the layer, before a training step, how much of the run is done (0 to 1).

        `draw` is a number from 0 to 1 that is random from step to step and layer to layer, and the
        same when a run is resumed.
        """

    def merge(self) -> FFN:
        """Return the dense feed-forward of the same function, or raise `NotMergeable`.

        What has to be drawn for it comes from Paddle's random generator.
        """
        raise NotMergeable(
            f"feed-forward kind '{self.kind}' has no dense form of the same function: "
            f"{self.why_not_mergeable}"
        )


# From two layers, x and the name of an activation to `linear2(activation(linear1(x)))`.
FusedPair: TypeAlias = Callable[[Any, Any, Tensor, str], Tensor]
# What computes a pair of layers in one operator, by the `forward` that the classes of both have.
FUSED_PAIRS: dict[Callable[..., Tensor], FusedPair] = {}


def find_fused(linear1: nn.Layer, linear2: nn.Layer) -> FusedPair | None:
    """Return what computes the pair in one operator, if there is such a thing.

    There is none where others take part in calls of the layers, by hooks or by methods set on the
    layer itself: tensor parallelism does.
    """
    forward = type(linear1).forward
    if forward is not type(linear2).forward or not (is_bare(linear1) and is_bare(linear2)):
        return None
    return FUSED_PAIRS.get(forward)


def is_bare(layer: nn.Layer) -> bool:
    """Tell whether calling the layer is what its class computes, and nothing else."""
    own = vars(layer)
    replaced = any(callable(own[name]) and hasattr(type(layer), name) for name in own)
    return not (layer._forward_pre_hooks or layer._forward_post_hooks or replaced)


def relative_error(linear: nn.Linear, stand_in_IO: np.ndarray) -> float:
    """Return ‖W - W'‖/‖W‖ (Frobenius) for the weight of `linear` and the matrix in its place."""
    weight_IO = to_float64(linear.weight)
    distance, norm = (float(np.linalg.norm(each)) for each in (weight_IO - stand_in_IO, weight_IO))
    return distance / max(norm, 1e-300)
