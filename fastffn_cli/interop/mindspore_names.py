"""Names of tensors in MindSpore's GPTs: the original FastFFN's and MindFormers'.

FastFFN as published in December 2022, MindFormers r0.3 `models/gpt2`.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from fastffn_cli.interop.layout import SAME, Arrangement, Rule, rule

# Prefixes come and go between versions and wrappers; what is left of a name identifies a tensor.
PREFIXES = ("gpt2.", "backbone.", "transformer.encoder.", "embedding.")
WORDS = "word_embedding.embedding_table"
POSITIONS = "position_embedding.embedding_table"
BLOCK = re.compile(r"blocks\.(0|[1-9]\d{0,5})\.(.+)")
FACTOR = "output.fastffnmapping1.weight"
DENSE = "output.mapping.weight"
# Names inside a block: ours, theirs. The two kinds of feed-forward are in their own tables.
ATTENTION = tuple(f"attention.dense{number}" for number in (1, 2, 3))
BLOCK_NAMES = {
    "norm1.weight": "layernorm1.gamma",
    "norm1.bias": "layernorm1.beta",
    "self_attn.out_proj.weight": "attention.projection.weight",
    "self_attn.out_proj.bias": "attention.projection.bias",
    "norm2.weight": "layernorm2.gamma",
    "norm2.bias": "layernorm2.beta",
}
FFN_NAMES = {
    "dense": {
        "ffn.linear1.weight": DENSE,
        "ffn.linear1.bias": "output.mapping.bias",
        "ffn.linear2.weight": "output.projection.weight",
        "ffn.linear2.bias": "output.projection.bias",
    },
    "low_rank": {
        "ffn.linear1.left": FACTOR,
        "ffn.linear1.right": "output.fastffnmapping2.weight",
        "ffn.linear1.bias": "output.fastffnmapping2.bias",
        "ffn.linear2.left": "output.fastffnprojection1.weight",
        "ffn.linear2.right": "output.fastffnprojection2.weight",
        "ffn.linear2.bias": "output.fastffnprojection2.bias",
    },
}
MODEL_NAMES = frozenset((WORDS, POSITIONS, "layernorm.gamma", "layernorm.beta"))
IN_BLOCK = frozenset(
    (
        *BLOCK_NAMES.values(),
        *(name for names in FFN_NAMES.values() for name in names.values()),
        *(f"{name}.{part}" for name in ATTENTION for part in ("weight", "bias")),
    )
)


@dataclass(frozen=True)
class Naming:
    """The prefixes that one program gives to embeddings, blocks and the final norm."""

    embeddings: str
    blocks: str
    norm: str

    def full(self, short: str) -> str:
        """Give the name in a file for a name without prefixes."""
        if short in (WORDS, POSITIONS):
            return self.embeddings + short
        return (self.blocks if BLOCK.fullmatch(short) else self.norm) + short


FASTFFN = Naming("backbone.", "backbone.transformer.encoder.", "backbone.")
MINDFORMERS = Naming("embedding.", "", "")


class NameFinder:
    """Makes rules with the names of a file, or of `naming` for what is not in it."""

    def __init__(self, names: Collection[str], naming: Naming) -> None:
        self.found = {shorten(name): name for name in names}
        shared = {
            each: sum(each.full(short) == name for short, name in self.found.items())
            for each in (naming, FASTFFN, MINDFORMERS)
        }
        self.naming = max(shared, key=lambda each: shared[each])

    def rule(self, ours: str, *shorts: str, arrangement: Arrangement = SAME) -> Rule:
        """Tie our name to the full names of short ones."""
        names = [self.found.get(short) or self.naming.full(short) for short in shorts]
        return rule(ours, *names, arrangement=arrangement)


def shorten(name: str) -> str:
    """Give a name without its prefixes."""
    while prefix := next((each for each in PREFIXES if name.startswith(each)), None):
        name = name.removeprefix(prefix)
    return name


def is_weight(name: str) -> bool:
    """Whether a name, with or without prefixes, is that of a GPT's weight."""
    short = shorten(name)
    block = BLOCK.fullmatch(short)
    return short in MODEL_NAMES or (block is not None and block[2] in IN_BLOCK)
