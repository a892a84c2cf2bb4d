"""Growth of a feed-forward to more hidden units, by which its function stays the same.

    W1' = [W1, E]    b1' = [b1, 0]    W2' = [W2; 0]    b2' = b2

The new units see the input through random weights E and nothing reads them yet, as the new rows of
W2 are zero. Those rows have a full gradient at the first step, E from the second step on. Net2Net
(Chen et al., arXiv:1511.05641) and bert2BERT (arXiv:2110.07143) copy units and divide what reads
them; new random units keep the function as well, and no two of them are alike. That new and old
units have the same RMS size is the rule of SPARKLING (arXiv:2602.02472).

Shape legend: D hidden_size, M hidden units before, N new ones, F = M + N ffn_hidden_size.
"""

from __future__ import annotations

import numpy as np
import paddle
from paddle import Tensor, nn

from models.ffn.dense import DenseFFN
from models.ffn.low_rank import to_float64


def grow(linear1: nn.Linear, linear2: nn.Linear, ffn_hidden_size: int) -> DenseFFN:
    """Return the dense feed-forward of `ffn_hidden_size` units that computes what the pair does.

    E comes from Normal(0, RMS of W1's entries), so that RMS(x E) = RMS(x W1) for an input of
    uncorrelated features of one spread, as layer norm leaves them. It is drawn in float32 from
    Paddle's generator, whatever the dtypes are. The linears are not changed.

    Raises `ValueError` when there are more units than that already.
    """
    weight1_DM, weight2_MD = linear1.weight, linear2.weight
    new = ffn_hidden_size - weight1_DM.shape[1]
    if new < 0:
        raise ValueError(f"{weight1_DM.shape[1]} hidden units cannot grow to {ffn_hidden_size}")
    if new == 0:
        return DenseFFN.from_linears(linear1, linear2)
    rms = float(np.sqrt(np.mean(np.square(to_float64(weight1_DM)))))
    fresh_DN = paddle.standard_normal([weight1_DM.shape[0], new], dtype="float32") * rms
    return DenseFFN.from_linears(
        _extend(linear1, fresh_DN, axis=1),
        _extend(linear2, paddle.zeros([new, weight2_MD.shape[1]]), axis=0),
    )


def _extend(linear: nn.Linear, weight: Tensor, axis: int) -> nn.Linear:
    """Return a Linear with `weight` behind the weight's own entries, and zeros behind the bias."""
    with paddle.no_grad():
        joined = paddle.concat([linear.weight, weight.astype(linear.weight.dtype)], axis=axis)
    extended = nn.Linear(*joined.shape, bias_attr=None if linear.bias is not None else False)
    extended.to(dtype=joined.dtype)
    extended.weight.set_value(joined)
    if linear.bias is not None:
        silent = paddle.zeros([joined.shape[1] - linear.bias.shape[0]], dtype=joined.dtype)
        extended.bias.set_value(paddle.concat([linear.bias.detach(), silent]))
    extended.training = linear.training
    return extended
