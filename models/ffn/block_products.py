"""What Monarch and BlockDense weights have in common: they are grids of low-rank matrices.

Every value between the two factors of such a weight belongs to one part of it alone: the part is
the product of some columns of the left factor and some rows of the right one, and no two parts
share an entry of either. The best fit to a dense weight, and an optimizer's moments on the way to
one and back, are therefore those of one low-rank matrix after the other, and as exact.

Shape legend: i rows of a part, o columns of it, r its rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from paddle import Tensor

from models.ffn.blocks import BlockLinear, overwrite
from models.ffn.low_rank import truncated_svd
from models.ffn.moments import (
    MergedParameter,
    complete_second_moment,
    lift_first_moment,
    lift_second_moment,
    pair_rate,
    split_moments,
)
from models.ffn.parameters import master_or_value, rate_scale, to_float64

Index = tuple[int | slice, ...]
Lift = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]


class Part(NamedTuple):
    """A part of the weight: basic indices of its [i, r], [r, o] and [i, o] in three arrays.

    They are `left`, `right` and the weight in the shape that `grid_shape` tells.
    """

    left: Index
    right: Index
    weight: Index


class BlockProduct(BlockLinear):
    """A `BlockLinear` of two factors, `left` and `right`; a kind adds `grid_shape` and `parts`."""

    left: Tensor
    right: Tensor

    def grid_shape(self) -> list[int]:
        """Return a shape of as many values as [in, out], in their order, that `parts` index."""
        raise NotImplementedError

    def parts(self) -> Iterator[Part]:
        """Go through all parts of the weight that are not always zero."""
        raise NotImplementedError

    def dense_weight(self) -> np.ndarray:
        """The [in, out] matrix, multiplied out in float64."""
        return self._multiply(to_float64(self.left), to_float64(self.right))

    def fit(self, weight_IO: np.ndarray) -> None:
        """Project a dense weight: truncated SVD of each part, and no such matrix is nearer."""
        left, right = np.zeros(self.left.shape), np.zeros(self.right.shape)
        grid = weight_IO.reshape(self.grid_shape())
        for part in self.parts():
            rank = left[part.left].shape[1]
            left[part.left], right[part.right] = truncated_svd(grid[part.weight], rank)
        overwrite(self.left, left)
        overwrite(self.right, right)

    def merged_parameters(self) -> dict[str, MergedParameter]:
        """Name the weight, which takes the place of both factors."""
        shape = (self.in_features, self.out_features)
        return {"weight": MergedParameter(shape, ("left", "right"))}

    def merge_state(self, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the moments (and the float32 master, if any) of the merged weight, in float64.

        `state` and the result are those of `models.ffn.moments.MergesState`. Parts that are always
        zero have a first moment of zero and a second one in keeping with their rows and columns.
        """
        left, right = (master_or_value(self, name, state) for name in ("left", "right"))

        def lift_all(lift: Lift, moment: str) -> np.ndarray:
            of_left, of_right = (state[f"{name}.{moment}"] for name in ("left", "right"))
            return self._assemble(
                lambda part: lift(
                    left[part.left], right[part.right], of_left[part.left], of_right[part.right]
                )
            )

        second = lift_all(lift_second_moment, "moment2")
        known = self._assemble(lambda part: np.ones(())).astype(bool)
        master = {"weight.master": self._multiply(left, right)} if "left.master" in state else {}
        return {
            "weight.moment1": lift_all(lift_first_moment, "moment1"),
            "weight.moment2": complete_second_moment(second, known),
            **master,
        }

    def split_state(self, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the moments of both factors from those of the weight they stand for, in float64.

        `state` and the result are those of `models.ffn.moments.SplitsState`.
        """
        left, right = to_float64(self.left), to_float64(self.right)
        first, second = (
            state[f"weight.{moment}"].reshape(self.grid_shape())
            for moment in ("moment1", "moment2")
        )
        moments = {
            f"{name}.{moment}": np.zeros(factor.shape)
            for name, factor in (("left", left), ("right", right))
            for moment in ("moment1", "moment2")
        }
        for part in self.parts():
            of_left, of_right = split_moments(
                left[part.left], right[part.right], first[part.weight], second[part.weight]
            )
            for number, moment in enumerate(("moment1", "moment2")):
                moments[f"left.{moment}"][part.left] = of_left[number]
                moments[f"right.{moment}"][part.right] = of_right[number]
        return moments

    def merged_rates(self) -> dict[str, float]:
        """Return the root mean square of `pair_rate` over all parts, the weight's own."""
        left, right = to_float64(self.left), to_float64(self.right)
        rates = rate_scale(self.left), rate_scale(self.right)
        squares = self._assemble(
            lambda part: np.square(pair_rate(left[part.left], right[part.right], *rates))
        )
        return {"weight": float(np.sqrt(squares.mean()))}

    def _multiply(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        return self._assemble(lambda part: left[part.left] @ right[part.right])

    def _assemble(self, value: Callable[[Part], np.ndarray]) -> np.ndarray:
        """Return the [in, out] matrix of each part's value, zero where there is no part."""
        grid = np.zeros(self.grid_shape())
        for part in self.parts():
            grid[part.weight] = value(part)
        return grid.reshape([self.in_features, self.out_features])
