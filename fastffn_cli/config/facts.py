"""What is known before a configuration is read: the sizes that a checkpoint's tensors have."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from fastffn_cli.config.layers import cover, tree_of
from fastffn_cli.config.origin import Origin, Problem
from fastffn_cli.config.yaml_tree import Branch, Leaf


@dataclass(frozen=True)
class Facts:
    """Values that lie below a configuration, by section and key.

    `source` is where they are from. What the user writes wins, except over the dotted keys in
    `fixed`: those cannot be otherwise, and a configuration that says so is of something else.
    """

    values: Mapping[str, Any]
    fixed: Collection[str]
    source: str

    def lay_below(self, tree: Branch, problems: list[Problem]) -> Branch:
        """Return `tree` on top of the facts; adds a problem for everything that contradicts."""
        facts = tree_of(self.values, Origin("checkpoint", text=self.source))
        for key in self.fixed:
            fact, said = (branch.find(tuple(key.split("."))) for branch in (facts, tree))
            if not isinstance(fact, Leaf) or not isinstance(said, Leaf) or said.value is None:
                continue
            if said.value != fact.value:
                text = f"{key} is {said.value} here, and {fact.value} in {self.source}"
                problems.append(Problem(said.origin, text))
        return cover(facts, tree)
