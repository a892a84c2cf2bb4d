"""Growth of a feed-forward to more hidden units, by which its function stays the same.

    W1' = [W1, E]    b1' = [b1, 0]    W2' = [W2; 0]    b2' = b2

The new units see the input through random weights E and nothing reads them yet, as the new rows of
W2 are zero. Those rows have a full gradient at the first step, E from the second step on. Net2Net
(Chen et al., arXiv:1511.05641) and bert2BERT (arXiv:2110.07143) copy units and divide what reads
them; new random units keep the function as well, and no two of them are alike. That new and old
units have the same RMS size is the rule of SPARKLING (arXiv:2602.02472).

The way back, `choose_units`, keeps a part of a trained feed-forward's hidden units.

Shape legend: D hidden_size, M hidden units before, N new ones, F = M + N ffn_hidden_size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import paddle
from paddle import Tensor, nn

from models.ffn.dense import DenseFFN
from models.ffn.parameters import to_float64

INTO, OUT_OF = 1, 0  # the axis of a weight [in, out] along which hidden units lie


@dataclass(frozen=True)
class HiddenUnits:
    """Which hidden units of a dense feed-forward with `total` of them a layer has.

    `axis` is `INTO` for W1, whose bias they have as well, and `OUT_OF` for W2. `kept` are the
    places of the layer's units among the dense ones, for a layer that was made of a trained one;
    None for units that never had a place.
    """

    total: int
    axis: int
    kept: np.ndarray | None = None

    def grown_shape(self, shape: list[int]) -> tuple[int, ...]:
        """Return the dense weight's shape from the layer's, [in, out]."""
        return tuple(self.total if axis == self.axis else n for axis, n in enumerate(shape))

    def take(self, dense: np.ndarray) -> np.ndarray:
        """Return the part of a dense weight [in, out], or of W1's bias [F], that the layer has.

        Raises `ValueError` for units that never had a place.
        """
        if self.kept is None:
            raise ValueError("these hidden units were not taken from a dense feed-forward")
        return np.take(dense, self.kept, axis=self.axis if dense.ndim > 1 else 0)

    def put(self, weight_IO: np.ndarray) -> np.ndarray:
        """Return the dense weight with the layer's units at their places and zeros elsewhere."""
        dense_OI = np.zeros([self.total, weight_IO.shape[1 - self.axis]])
        dense_OI[self.kept] = weight_IO.T if self.axis == INTO else weight_IO
        return dense_OI.T if self.axis == INTO else dense_OI


def grow(
    linear1: nn.Linear, linear2: nn.Linear, ffn_hidden_size: int, activation: str = "gelu"
) -> DenseFFN:
    """Return the dense feed-forward of `ffn_hidden_size` units that computes what the pair does.

    `activation` stands between the two (`models.ffn.base.ACTIVATIONS`), and is 0 at 0.
    The linears are not changed. Raises `ValueError` when there are more units than that already.
    """
    return DenseFFN.from_linears(
        grow_linear(linear1, HiddenUnits(ffn_hidden_size, INTO)),
        grow_linear(linear2, HiddenUnits(ffn_hidden_size, OUT_OF)),
        activation,
    )


def grow_linear(linear: nn.Layer, units: HiddenUnits) -> nn.Linear:
    """Return W1' or W2' as a Linear of its own; `linear` has a `weight` [in, out] and a `bias`.

    E comes from Normal(0, RMS of W1's entries), so that RMS(x E) = RMS(x W1) for an input of
    uncorrelated features of one spread, as layer norm leaves them. It is drawn in float32 from
    Paddle's generator, whatever the dtypes are.

    Raises `ValueError` when there are more hidden units than `units.total`.
    """
    weight = linear.weight
    new = units.total - weight.shape[units.axis]
    if new < 0:
        raise ValueError(f"{weight.shape[units.axis]} hidden units cannot grow to {units.total}")
    if units.axis == INTO:
        rms = float(np.sqrt(np.mean(np.square(to_float64(weight)))))
        fresh = paddle.standard_normal([weight.shape[0], new], dtype="float32") * rms
    else:
        fresh = paddle.zeros([new, weight.shape[1]])
    bias = linear.bias
    if bias is not None and units.axis == INTO:
        bias = _join(bias, paddle.zeros([new]), axis=0)
    return _new_linear(linear, _join(weight, fresh, axis=units.axis), bias)


def choose_units(linear1: nn.Linear, linear2: nn.Linear, width: int) -> np.ndarray:
    """Return the places, in order, of the `width` hidden units that matter most to the output.

    A unit's score is √(‖w1‖² + b1²)·‖w2‖, with w1 its column of W1 and w2 its row of W2. The root
    is that of its mean square input for features that are uncorrelated and of unit size, as layer
    norm leaves them, and an activation near the identity or its positive part passes a fixed share
    of it on to w2. Scaling w1 and b1 up and w2 down leaves a score, as it leaves the function of a
    piecewise linear unit.
    """
    inside, outside = to_float64(linear1.weight), to_float64(linear2.weight)
    energy = np.square(inside).sum(axis=0)
    if linear1.bias is not None:
        energy = energy + np.square(to_float64(linear1.bias))
    scores = np.sqrt(energy) * np.linalg.norm(outside, axis=1)
    return np.sort(np.argsort(-scores, kind="stable")[:width])


def take_units(linear: nn.Linear, units: HiddenUnits) -> nn.Linear:
    """Return a Linear of the chosen hidden units of `linear` alone, of the same dtype."""

    def take(tensor: Tensor) -> Tensor:
        # By way of numpy: Paddle selects no float16 entries on a CPU.
        return paddle.to_tensor(units.take(to_float64(tensor)), dtype=tensor.dtype)

    bias = linear.bias
    if bias is not None and units.axis == INTO:
        bias = take(bias)
    return _new_linear(linear, take(linear.weight), bias)


def _join(own: Tensor, new: Tensor, axis: int) -> Tensor:
    if not new.size:
        return own
    with paddle.no_grad():
        return paddle.concat([own, new.astype(own.dtype)], axis=axis)


def _new_linear(like: nn.Layer, weight: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(*weight.shape, bias_attr=None if bias is not None else False)
    linear.to(dtype=weight.dtype)
    linear.weight.set_value(weight)
    if bias is not None:
        linear.bias.set_value(bias)
    linear.training = like.training
    return linear
