"""The options of `Model.ffn`, one class a kind of feed-forward layer.

A new kind is one class here and one name in `FFNOptions`; the loader, the explanations and the JSON
schema follow from them. Kinds share the names of options that mean the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from fastffn_cli.config.fields import Block, Flag, Integer, Number

KIND = "Kind of feed-forward layer: dense, or one that is cheaper, for stage 1 (docs/survey.md)."
RANK = "Rank of the two factors of each weight; the original uses 8."
BLOCKS = "Blocks that each weight is cut into; they divide hidden_size and ffn_hidden_size."
LR_RULE = (
    "Learning rate of the factors: none = the model's, spectral = scaled so that a step moves the "
    "product as far as a dense step would."
)
LR_CAP = "Largest factor by which lr_rule may raise the learning rate."
WIDTH = "Hidden units of stage 1 (blank: a quarter of Model.hidden_size); grown when merged."
INNER_OPTIONS = ("rank", "width", "blocks")  # what `guided` takes on behalf of the kind it guides
# Options that change how a kind is trained, not what it computes from given weights.
TRAINING_OPTIONS = (
    "init", "lr_rule", "lr_cap", "decay_rule", "capacity_factor", "balance_weight", "guided_share",
    "reduce_flops",
)  # fmt: skip


class DenseFFN(Block):
    """The ordinary feed-forward layer: y = W2 gelu(W1 x)."""

    kind: Literal["dense"] = Field(default="dense", description=KIND)


class CheapFFN(Block):
    """What all other kinds share."""

    dense_layers: tuple[Integer, ...] = Field(
        default=(),
        description="Layers that stay dense, counted from 0; -1 is the last: [0, -1].",
    )


class Factors(CheapFFN):
    """What the kinds with two factors for each weight share."""

    rank: Integer = Field(default=8, ge=1, description=RANK)
    layer_ranks: tuple[Integer, ...] = Field(
        default=(), description="A rank for each layer, in order (blank: `rank` for all)."
    )
    init: Literal["normal", "spectral", "variance"] = Field(
        default="spectral",
        description="Start of the factors: spectral = truncated SVD of a dense start, variance = "
        "the product has the dense variance, normal = the original's Normal(initializer_range).",
    )
    lr_rule: Literal["none", "spectral"] = Field(default="none", description=LR_RULE)
    lr_cap: Number = Field(default=4.0, gt=0, description=LR_CAP)
    decay_rule: Literal["full", "half"] = Field(
        default="full",
        description="Weight decay of the factors: full = the model's, half = half of it on each, "
        "which decays their product as a dense weight decays.",
    )


class LowRankFFN(Factors):
    """Two thin factors in place of each weight: W = left @ right, of rank `rank`."""

    kind: Literal["low_rank"] = Field(description=KIND)


class NarrowFFN(CheapFFN):
    """A dense feed-forward of few hidden units, grown to full size when merged."""

    kind: Literal["narrow"] = Field(description=KIND)
    width: Integer | None = Field(default=None, ge=1, description=WIDTH)


class ThinFFN(Factors):
    """Low-rank and narrow together: thin factors around few hidden units."""

    kind: Literal["thin"] = Field(description=KIND)
    width: Integer | None = Field(default=None, ge=1, description=WIDTH)


class Blocks(CheapFFN):
    """What the kinds with block-diagonal factors share."""

    blocks: Integer = Field(default=4, ge=1, description=BLOCKS)
    lr_rule: Literal["none", "spectral"] = Field(default="none", description=LR_RULE)
    lr_cap: Number = Field(default=4.0, gt=0, description=LR_CAP)


class MonarchFFN(Blocks):
    """Two block-diagonal factors with a permutation between them, for each weight."""

    kind: Literal["monarch"] = Field(description=KIND)


class BlockDenseFFN(Blocks):
    """A block-diagonal factor to `rank`, then a dense one, for each weight."""

    kind: Literal["block_dense"] = Field(description=KIND)
    rank: Integer = Field(default=8, ge=1, description=RANK)
    layer_ranks: tuple[Integer, ...] = Field(
        default=(), description="A rank for each layer, in order (blank: `rank` for all)."
    )


class BlockDiagonalFFN(Blocks):
    """Block-diagonal weights: zeros outside of `blocks` blocks."""

    kind: Literal["block_diagonal"] = Field(description=KIND)


class LowRankActivationFFN(CheapFFN):
    """Factors with an activation between them (CoLA); has no dense form."""

    kind: Literal["low_rank_activation"] = Field(description=KIND)
    rank: Integer = Field(
        default=8,
        ge=1,
        description="Width between the two factors of each weight; a quarter of Model.hidden_size "
        "in the paper.",
    )
    layer_ranks: tuple[Integer, ...] = Field(
        default=(), description="A rank for each layer, in order (blank: `rank` for all)."
    )
    outer_activation: Flag = Field(
        default=True, description="Keep GELU over the whole hidden width as well."
    )


class MoEFFN(CheapFFN):
    """Feed-forwards of which a router picks `top_k` for each token; has no dense form."""

    kind: Literal["moe"] = Field(description=KIND)
    experts: Integer = Field(default=8, ge=2, description="Feed-forwards to choose from.")
    top_k: Integer = Field(default=1, ge=1, description="Feed-forwards that a token goes through.")
    expert_size: Integer | None = Field(
        default=None, ge=1, description="Hidden units of each (blank: Model.ffn_hidden_size)."
    )
    capacity_factor: Number = Field(
        default=1.25,
        gt=0,
        description="Tokens that one feed-forward takes in training, over its fair share; further "
        "ones are passed by. There is no limit in evaluation and generation.",
    )
    balance_weight: Number = Field(
        default=0.01, ge=0, description="Weight of the loss that spreads tokens evenly."
    )


class GuidedFFN(CheapFFN):
    """A cheap feed-forward that a dense one guides at first; merged as the cheap one."""

    kind: Literal["guided"] = Field(description=KIND)
    inner: Literal["low_rank", "narrow", "thin", "monarch", "block_dense", "block_diagonal"] = (
        Field(default="low_rank", description="Kind that is guided; `rank`, ... are its options.")
    )
    rank: Integer | None = Field(default=None, ge=1, description=RANK)
    width: Integer | None = Field(default=None, ge=1, description=WIDTH)
    blocks: Integer | None = Field(default=None, ge=1, description=BLOCKS)
    guided_share: Number = Field(
        default=0.5, gt=0, le=1, description="Share of the run in which the dense one takes part."
    )
    reduce_flops: Flag = Field(
        default=True,
        description="Run the dense one only in as many steps as its share of the output says.",
    )

    def inner_options(self) -> Block:
        """Return the guided kind's own options, without those that it does not have."""
        inner = FFN_KINDS[self.inner]
        values = {name: getattr(self, name) for name in INNER_OPTIONS if name in inner.model_fields}
        given = {name: value for name, value in values.items() if value is not None}
        return inner.model_validate({"kind": self.inner, **given})


FFNOptions = Annotated[
    DenseFFN
    | LowRankFFN
    | NarrowFFN
    | ThinFFN
    | MonarchFFN
    | BlockDenseFFN
    | BlockDiagonalFFN
    | LowRankActivationFFN
    | MoEFFN
    | GuidedFFN,
    Field(discriminator="kind"),
]
FFN_KINDS: dict[str, type[Block]] = {
    "dense": DenseFFN,
    "low_rank": LowRankFFN,
    "narrow": NarrowFFN,
    "thin": ThinFFN,
    "monarch": MonarchFFN,
    "block_dense": BlockDenseFFN,
    "block_diagonal": BlockDiagonalFFN,
    "low_rank_activation": LowRankActivationFFN,
    "moe": MoEFFN,
    "guided": GuidedFFN,
}


# What makes a model cheaper than the dense one of its sizes, by the keys of `Model`.
DENSE: Mapping[str, Any] = {
    "ffn": {"kind": "dense"},
    "attention_rank": None,
    "embedding_rank": None,
}


def is_dense(approximations: Mapping[str, Any]) -> bool:
    """Whether a model with these parts (those of `DENSE`, other keys aside) is the dense one."""
    kind = approximations.get("ffn", {}).get("kind", "dense")
    ranks = [approximations.get(name) for name in ("attention_rank", "embedding_rank")]
    return kind == "dense" and ranks == [None, None]


def describe_approximations(approximations: Mapping[str, Any]) -> str:
    """Say in a few words what a model is made of: `FFN low_rank (rank 8), attention rank 64`."""
    told = [f"FFN {describe_ffn(approximations['ffn'])}"]
    for name in ("attention", "embedding"):
        rank = approximations.get(f"{name}_rank")
        if rank is not None:
            told.append(f"{name} rank {rank}")
    return ", ".join(told)


def describe_ffn(options: Mapping[str, Any]) -> str:
    """Say in a few words what the feed-forwards are: `low_rank (rank 8)`."""
    told = [
        f"{name.replace('_', ' ')} {_shown(value)}"
        for name, value in options.items()
        if name not in (*TRAINING_OPTIONS, "kind") and value not in (None, (), [])
    ]
    return f"{options['kind']} ({', '.join(told)})" if told else str(options["kind"])


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
