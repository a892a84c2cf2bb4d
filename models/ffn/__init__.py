"""Feed-forward layers and their cheap approximations.

The API for any Paddle model:

    from models.ffn import approximate, merge

    approximate(model, kind="low_rank", rank=8)  # replaces feed-forwards in place
    merge(model)  # back to dense: the same function

A kind is one file with one `FFN` class and one line in `registry.KINDS`.
"""

from models.ffn.base import FFN, Cost, NotMergeable, Shape
from models.ffn.block_dense import BlockDenseFFN
from models.ffn.block_diagonal import BlockDiagonalFFN
from models.ffn.dense import DenseFFN
from models.ffn.grow import grow
from models.ffn.guided import GuidedFFN
from models.ffn.low_rank import LowRankFFN, LowRankLinear
from models.ffn.low_rank_activation import LowRankActivationFFN
from models.ffn.moe import MoEFFN
from models.ffn.monarch import MonarchFFN
from models.ffn.narrow import NarrowFFN
from models.ffn.registry import KINDS, build, cost, costs, find_kind, is_mergeable, layer_specs
from models.ffn.surgery import Replacement, approximate, merge
from models.ffn.thin import ThinFFN

__all__ = [
    "FFN",
    "KINDS",
    "BlockDenseFFN",
    "BlockDiagonalFFN",
    "Cost",
    "DenseFFN",
    "GuidedFFN",
    "LowRankActivationFFN",
    "LowRankFFN",
    "LowRankLinear",
    "MoEFFN",
    "MonarchFFN",
    "NarrowFFN",
    "NotMergeable",
    "Replacement",
    "Shape",
    "ThinFFN",
    "approximate",
    "build",
    "cost",
    "costs",
    "find_kind",
    "grow",
    "is_mergeable",
    "layer_specs",
    "merge",
]
