"""Training recipes by name: `Optimizer.recipe` stands for a block of defaults, nothing more.

What a recipe says covers what the layers below the one that names it say of `Optimizer`. Keys that
are written beside it, in the same file or likewise on the command line, or above it win.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastffn_cli.config.keys import leaf_keys
from fastffn_cli.config.layers import cover, tree_of
from fastffn_cli.config.origin import Origin
from fastffn_cli.config.schema_training import OptimizerSection
from fastffn_cli.config.yaml_tree import Branch, Leaf

Rank = Callable[[Origin], tuple[int, int]]
OVERRIDES = (1, 0)  # the rank from which on values were typed

RECIPES: dict[str, dict[str, Any]] = {
    # FastFFN's trainer (mindformers @57ef28f, gptfast_trainer.py): FusedAdamWeightDecay, and a
    # clip that has no effect there.
    "mindspore-fastffn": {
        "weight_decay": 0.1,
        "adam_beta1": 0.9,
        "adam_beta2": 0.95,
        "adam_epsilon": 1e-8,
        "bias_correction": False,
        "lr": {
            "name": "mindspore_cosine",
            "warmup_rate": 0.1,
            "max_lr": 1e-4,
            "min_lr": 1e-5,
        },
        "grad_clip": 0.0,
    },
}


def defaults_of(recipe: str | None) -> OptimizerSection:
    """Return the section as it is when nothing else is written."""
    return OptimizerSection.model_validate(RECIPES.get(recipe or "", {}))


def apply_recipe(tree: Branch, rank: Rank) -> Branch:
    """Return the tree with the values that its `Optimizer.recipe` stands for.

    `rank` orders the layers that the tree's values come from.
    """
    section, node = tree.entries.get("Optimizer"), tree.find(("Optimizer", "recipe"))
    name = node.value if isinstance(node, Leaf) else None
    if not isinstance(section, Branch) or not isinstance(name, str) or name not in RECIPES:
        return tree
    assert node is not None
    lowest = OVERRIDES if node.origin.kind == "override" else rank(node.origin)
    written = _keep(section, "Optimizer", lambda origin: rank(origin) >= lowest)
    values = cover(tree_of(RECIPES[name], Origin("recipe", text=f"recipe {name}")), written)
    return Branch(tree.origin, {**tree.entries, "Optimizer": values})


def _keep(block: Branch, path: str, counts: Callable[[Origin], bool]) -> Branch:
    """Return a block without blank values and without those whose origin does not count.

    What is no key of the section stays, to be complained of.
    """
    kept: dict[str, Leaf | Branch] = {}
    for name, node in block.entries.items():
        dotted = f"{path}.{name}"
        if isinstance(node, Branch):
            kept[name] = _keep(node, dotted, counts)
        elif dotted not in leaf_keys() or (node.value is not None and counts(node.origin)):
            kept[name] = node
    return Branch(block.origin, kept)
