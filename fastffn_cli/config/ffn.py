"""The options of `Model.ffn`, one class a kind of feed-forward layer.

A new kind is one class here and one name in `FFNOptions`; the loader, the explanations and the JSON
schema follow from them.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fastffn_cli.config.fields import Block, Integer, Number


class DenseFFN(Block):
    """The ordinary feed-forward layer: y = W2 gelu(W1 x)."""

    kind: Literal["dense"] = Field(
        default="dense", description="Kind of feed-forward layer: dense, or low_rank for stage 1."
    )


class LowRankFFN(Block):
    """Two thin factors in place of each weight: W = left @ right, of rank `rank`."""

    kind: Literal["low_rank"] = Field(
        description="Kind of feed-forward layer: dense, or low_rank for stage 1."
    )
    rank: Integer = Field(
        default=8, ge=1, description="Rank of the two factors of each weight; the original uses 8."
    )
    init: Literal["normal", "spectral", "variance"] = Field(
        default="spectral",
        description="Start of the factors: spectral = truncated SVD of a dense start, variance = "
        "the product has the dense variance, normal = the original's Normal(initializer_range).",
    )
    lr_rule: Literal["none", "spectral"] = Field(
        default="none",
        description="Learning rate of the factors: none = the model's, spectral = scaled so that a "
        "step moves the product as far as a dense step would.",
    )
    lr_cap: Number = Field(
        default=4.0,
        gt=0,
        description="Largest factor by which lr_rule may raise the learning rate.",
    )
    decay_rule: Literal["full", "half"] = Field(
        default="full",
        description="Weight decay of the factors: full = the model's, half = half of it on each, "
        "which decays their product as a dense weight decays.",
    )


FFNOptions = Annotated[DenseFFN | LowRankFFN, Field(discriminator="kind")]
FFN_KINDS: dict[str, type[Block]] = {"dense": DenseFFN, "low_rank": LowRankFFN}
