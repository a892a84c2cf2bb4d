"""What stands between the two matrices of a feed-forward, by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from paddle import Tensor
from paddle.nn import functional


def fast_gelu(x: Tensor) -> Tensor:
    """Return x·sigmoid(1.702·x), elementwise: MindSpore's `fast_gelu`, Hugging Face's `quick_gelu`.

    Hendrycks and Gimpel 2016 (arXiv:1606.08415). Written as swish(1.702·x) / 1.702, which keeps one
    tensor for the backward pass where the product would keep two. (`functional.silu` is the same
    function, and its gradient is NaN below -88 in Paddle 3.3.)
    """
    return functional.swish(x * 1.702) / 1.702


# By the name that `Model.hidden_act` uses; `gelu` is the tanh form. The kernels know all of them.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": partial(functional.gelu, approximate=True),
    "erf_gelu": functional.gelu,
    "fast_gelu": fast_gelu,
}
