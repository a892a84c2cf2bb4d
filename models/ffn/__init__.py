"""Feed-forward layers and their cheap approximations.

The API for any Paddle model:

    from models.ffn import approximate, merge

    approximate(model, kind="low_rank", rank=8)  # replaces feed-forwards in place
    merge(model)  # back to dense: the same function

A kind is one file with one `FFN` class and one line in `registry.KINDS`.
"""

from models.ffn.base import FFN, Cost, NotMergeable, Shape
from models.ffn.dense import DenseFFN
from models.ffn.low_rank import LowRankFFN, LowRankLinear
from models.ffn.registry import KINDS, build, cost, find_kind
from models.ffn.surgery import Replacement, approximate, merge

__all__ = [
    "FFN",
    "KINDS",
    "Cost",
    "DenseFFN",
    "LowRankFFN",
    "LowRankLinear",
    "NotMergeable",
    "Replacement",
    "Shape",
    "approximate",
    "build",
    "cost",
    "find_kind",
    "merge",
]
