"""Looking rows of a table up, with a gradient that costs what the rows cost, not the table.

Paddle's lookup has a dense gradient: [V, K] zeros, a scatter, and, where the table is the head as
well, an addition to the head's own [V, K]. On a CPU these are passes over memory that no cache
holds. With the kernels' library the gradient is a list of rows there (Paddle's SelectedRows), which
the engine adds onto the head's gradient row by row, in order. A table that has no other gradient
gets a whole one.
"""

from __future__ import annotations

import paddle
from paddle import Tensor
from paddle.nn import functional

from models.kernels import library


def look_up(ids: Tensor, table_VK: Tensor) -> Tensor:
    """Map token ids [...] to rows of the table [..., K]; its gradient is always a whole tensor.

    Raises what Paddle raises for an id that the table does not have.
    """
    by_rows = paddle.in_dynamic_mode() and not table_VK.stop_gradient and library.serves(table_VK)
    if by_rows:
        _complete_gradient(table_VK)
    return functional.embedding(ids, table_VK, sparse=by_rows)


def _complete_gradient(table_VK: Tensor) -> None:
    """Have a gradient that is rows alone made whole before the table gets it."""
    # A deep copy of a parameter takes attributes along, but no hooks.
    if getattr(table_VK, "completed_for", None) == id(table_VK):
        return

    def complete(gradient: Tensor) -> Tensor | None:
        if not gradient.is_selected_rows():
            return None
        rows = paddle.to_tensor(gradient.rows(), dtype="int64", place=gradient.place)
        values = gradient._get_tensor_from_selected_rows()
        zeros = paddle.zeros(table_shape, values.dtype)
        return paddle.scatter_nd_add(zeros, rows.unsqueeze(-1), values)

    table_shape = table_VK.shape
    table_VK.register_hook(complete)
    table_VK.completed_for = id(table_VK)
