"""Values that follow from others: batch sizes, accumulation, feed-forward width, precision."""

from __future__ import annotations

import math
from typing import Any

from fastffn_cli.config.origin import Origin
from fastffn_cli.config.schema import Config
from fastffn_cli.config.yaml_tree import Branch, Leaf

GLOBAL = "Data.batch_size.global_batch_size"
LOCAL = "Data.batch_size.local_batch_size"
MICRO = "Data.batch_size.micro_batch_size"
ACCUMULATE = "Engine.accumulate_steps"
DATA_DEGREES = ("Distributed.dp_degree", "Distributed.sharding.sharding_degree")
PURE_FP16 = "Engine.mix_precision.use_pure_fp16"
ENABLE = "Engine.mix_precision.enable"


def yield_to_overrides(tree: Branch) -> None:
    """Drop what a file says about a value that an override now decides.

    A run folder's `config.yaml` is resolved: it states the derived values too. Without this,
    `-c runs/x/config.yaml -o Data.batch_size.micro_batch_size=4` would contradict the
    `accumulate_steps` in it.
    """
    sizes = (GLOBAL, LOCAL, MICRO, ACCUMULATE)
    if not any(_overridden(tree, key) for key in sizes):
        if any(_overridden(tree, key) for key in DATA_DEGREES):
            # The same step on other cards: what the file says of one card's share is of its own.
            if _value(tree, GLOBAL) is not None:
                _drop(tree, LOCAL)
            _drop(tree, ACCUMULATE)
            _settle_micro(tree)
        _settle_precision(tree)
        return
    if not _overridden(tree, ACCUMULATE):
        _drop(tree, ACCUMULATE)
    elif _overridden(tree, MICRO):
        # Both factors of the step are new, so the step is; a batch that is new too has to agree.
        _drop(tree, GLOBAL)
        _drop(tree, LOCAL)
    elif _value(tree, GLOBAL) is not None or _value(tree, LOCAL) is not None:
        # The same step in other pieces: `-o Engine.accumulate_steps=4` changes no mathematics.
        _drop(tree, MICRO)
    if _overridden(tree, GLOBAL) and not _overridden(tree, LOCAL):
        _drop(tree, LOCAL)
    if _overridden(tree, LOCAL) and not _overridden(tree, GLOBAL):
        _drop(tree, GLOBAL)
    if not _overridden(tree, MICRO):
        _settle_micro(tree)
    _settle_precision(tree)


def _settle_micro(tree: Branch) -> None:
    """Drop a file's micro batch that is larger than a card's batch: it becomes equal to it."""
    micro, local, total = (_value(tree, key) for key in (MICRO, LOCAL, GLOBAL))
    cards = math.prod(
        degree for key in DATA_DEGREES if type(degree := _value(tree, key)) is int and degree > 0
    )
    batch = [local] if type(local) is int else []
    if type(total) is int:
        batch.append(total // cards)
    if type(micro) is int and batch and micro > min(batch):
        _drop(tree, MICRO)


def _settle_precision(tree: Branch) -> None:
    """Let an override of one of the two switches of mixed precision outrank the file's other."""
    if _overridden(tree, PURE_FP16) and not _overridden(tree, ENABLE):
        _drop(tree, ENABLE)
    prefix = "Engine.mix_precision."
    if not _overridden(tree, PURE_FP16) and any(
        _overridden(tree, prefix + name) for name in ("enable", "dtype", "level")
    ):
        if not _overridden(tree, ENABLE) and _value(tree, PURE_FP16) is True:
            # `-o ...dtype=bfloat16` alone changes the type and leaves mixed precision on.
            tree_leaf = tree.find(tuple(PURE_FP16.split(".")))
            assert isinstance(tree_leaf, Leaf)
            block = tree.find(("Engine", "mix_precision"))
            assert isinstance(block, Branch)
            block.entries["enable"] = Leaf(True, tree_leaf.origin)
        _drop(tree, PURE_FP16)


def derive_values(config: Config, given: set[str]) -> tuple[Config, set[str]]:
    """Fill in what was left open; return the full Config and the keys that were derived.

    `given` are the dotted keys the user wrote. Call it after the rules: it expects batch sizes that
    agree. global_batch_size is local_batch_size times the data parallel processes; micro_batch_size
    is at most local_batch_size; accumulate_steps is their ratio.
    """
    values = config.model_dump()
    derived: set[str] = set()

    def fill(key: str, value: Any) -> None:
        *blocks, name = key.split(".")
        inner = values
        for block in blocks:
            inner = inner[block]
        if inner[name] != value:
            inner[name] = value
            derived.add(key)

    sizes = config.Data.batch_size
    data = config.Distributed.data_degree
    batch = sizes.local_batch_size
    if batch is None and sizes.global_batch_size is not None:
        batch = sizes.global_batch_size // data
    micro = sizes.micro_batch_size
    if batch is None:
        batch = micro * (config.Engine.accumulate_steps or 1)
    elif MICRO not in given:
        steps = config.Engine.accumulate_steps
        micro = batch // steps if steps else min(micro, batch)
    fill(GLOBAL, batch * data)
    fill(LOCAL, batch)
    fill(MICRO, micro)
    fill(ACCUMULATE, batch // micro)
    window = config.Offline_Eval.max_seq_len or config.Model.max_position_embeddings
    fill("Offline_Eval.overlapping_eval", min(config.Offline_Eval.overlapping_eval, window))
    if config.Model.ffn_hidden_size is None:
        fill("Model.ffn_hidden_size", 4 * config.Model.hidden_size)
    if config.Engine.mix_precision.enable is None:
        fill(ENABLE, config.Engine.mix_precision.use_pure_fp16)
    return Config.model_validate(values), derived


def _leaf(tree: Branch, key: str) -> Leaf | None:
    node = tree.find(tuple(key.split(".")))
    return node if isinstance(node, Leaf) and node.value is not None else None


def _value(tree: Branch, key: str) -> Any:
    leaf = _leaf(tree, key)
    return None if leaf is None else leaf.value


def _overridden(tree: Branch, key: str) -> bool:
    leaf = _leaf(tree, key)
    return leaf is not None and leaf.origin.kind == "override"


def _drop(tree: Branch, key: str) -> Origin | None:
    """Forget what a file says about a key; an override stays."""
    *blocks, name = key.split(".")
    block = tree.find(tuple(blocks))
    leaf = _leaf(tree, key)
    if leaf is None or not isinstance(block, Branch) or leaf.origin.kind == "override":
        return None
    del block.entries[name]
    return leaf.origin
