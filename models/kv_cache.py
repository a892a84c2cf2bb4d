"""Keys and values of tokens that were seen, so that the next ones need not look at them again.

Shape legend: B batch, T new tokens, S all tokens so far, K head size. HB is heads x batch, heads
outermost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import paddle
from paddle import Tensor


class KVCache:
    """Keys and values of all layers, in buffers of fixed capacity: [layer] of [HB, capacity, K]."""

    def __init__(
        self,
        *,
        num_layers: int,
        num_heads: int,
        head_size: int,
        batch_size: int,
        capacity: int,
        dtype: Any,
    ) -> None:
        shape = [num_heads * batch_size, capacity, head_size]
        self.heads, self.capacity, self.length = num_heads, capacity, 0
        self._keys = [paddle.zeros(shape, dtype) for _ in range(num_layers)]
        self._values = [paddle.zeros(shape, dtype) for _ in range(num_layers)]
        self._visible_BS = paddle.zeros([batch_size, capacity])

    def layer(self, index: int) -> LayerCache:
        """Return the part of one layer."""
        return LayerCache(self.length, self._keys[index], self._values[index])

    def check_room(self, steps: int) -> None:
        """Raise `ValueError` where there is no room for so many more tokens."""
        end = self.length + steps
        if end > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} tokens, {end} were asked for")

    def append_visible(self, visible_BT: Tensor) -> Tensor:
        """Store which new tokens may be attended to, 1 or 0 [B, T]; return it for all S tokens."""
        end = self.length + visible_BT.shape[1]
        self._visible_BS[:, self.length : end] = visible_BT
        return self._visible_BS[:, :end]

    def select(self, indices: Tensor) -> None:
        """Keep or repeat the sequences `indices` [B'] of the batch, in that order."""
        self._visible_BS = paddle.index_select(self._visible_BS, indices, axis=0)
        for buffers in (self._keys, self._values):
            for layer, buffer in enumerate(buffers):
                split = buffer.reshape([self.heads, -1, *buffer.shape[1:]])
                chosen = paddle.index_select(split, indices, axis=1)
                buffers[layer] = chosen.reshape([-1, *buffer.shape[1:]])


@dataclass(frozen=True)
class LayerCache:
    """Keys and values [HB, capacity, K] of one layer, of which the first `length` are there."""

    length: int
    keys: Tensor
    values: Tensor

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store [HB, T, K] behind the tokens so far; return keys and values of all S tokens."""
        end = self.length + k.shape[1]
        self.keys[:, self.length : end] = k
        self.values[:, self.length : end] = v
        return self.keys[:, :end], self.values[:, :end]
