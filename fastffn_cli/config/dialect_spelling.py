"""The forms of FleetX's YAML, spelled in the names of one of them.

* `fleetx-2022-08`: sections as in the schema, `Eval` for `Offline_Eval` (`examples/gpt`, 2022-08).
* `fleetx-2022-07`: no sections, one flat mapping of keys, or all of them below `PreTraining`.
* `ppfleetx`: `Global.local_batch_size`, `Data.Train`, `Optimizer.beta1` ... (2022-09 to 2023-08).
* `ppfleetx-transformer`: the same with the keys of `Engine` under `Global`
  (`examples/transformer`, 2023).
"""

from __future__ import annotations

from functools import cache
from typing import Literal

from fastffn_cli.config.ffn import FFN_KINDS
from fastffn_cli.config.fleetx_keys import FOREIGN, FOREIGN_BLOCKS, OPAQUE
from fastffn_cli.config.keys import all_keys, leaf_keys, sections
from fastffn_cli.config.yaml_tree import Branch

Form = Literal[
    "fastffn", "fleetx-2022-08", "ppfleetx", "ppfleetx-transformer", "fleetx-2022-07", "mindformers"
]  # fmt: skip
TITLES: dict[Form, str] = {
    "fastffn": "fastffn",
    "fleetx-2022-08": "FleetX (August 2022)",
    "ppfleetx": "ppfleetx (2023)",
    "ppfleetx-transformer": "ppfleetx examples/transformer (2023)",
    "fleetx-2022-07": "FleetX (July 2022)",
    "mindformers": "MindFormers",
}
# The later of two forms names a file: examples/transformer has all of ppfleetx's keys.
ORDER: tuple[Form, ...] = tuple(TITLES)

Path = tuple[str, ...]

_JULY = "PreTraining"
# Blocks of other forms that hold whole sections, or are one.
WRAPPERS: tuple[Path, ...] = ((_JULY,), ("Eval",))
_FLAT_SECTIONS = (
    "Global",
    "Engine",
    "Model",
    "Data",
    "Optimizer",
    "Distributed",
    "Fused",
    "Generation",
)
_FLAT_BLOCKS = {
    "batch_size": "Data.batch_size",
    "dataset": "Data.dataset",
    "mix_precision": "Engine.mix_precision",
    "save_load": "Engine.save_load",
    "lr": "Optimizer.lr",
    "sharding": "Distributed.sharding",
}
_FLAT_NAMES = {
    "beta1": "Optimizer.adam_beta1",
    "beta2": "Optimizer.adam_beta2",
    "epsilon": "Optimizer.adam_epsilon",
}
# Names that say too little without their block.
_TOO_SHORT = {"name", "enable", "level", "dtype"}


@cache
def flat_keys() -> dict[str, str]:
    """Return the keys that may stand without a section: `max_lr` is `Optimizer.lr.max_lr`."""
    options = {name for kind in FFN_KINDS.values() for name in kind.model_fields}
    found: dict[str, str] = {}
    for section in _FLAT_SECTIONS:
        for path, key in leaf_keys().items():
            if path.startswith(section + ".") and key.name not in _TOO_SHORT | options:
                found.setdefault(key.name, path)
    return {**found, **_FLAT_NAMES}


@cache
def _engine_names() -> frozenset[str]:
    """Return what may stand in `Engine` and not in `Global`."""

    def below(section: str) -> set[str]:
        paths = (*all_keys(), *FOREIGN)
        return {path.split(".")[1] for path in paths if path.startswith(section + ".")}

    return frozenset(below("Engine") - below("Global"))


def is_flat(tree: Branch) -> bool:
    """Tell whether a file is one flat mapping: more of its names are keys than sections."""
    names = tree.entries
    flat = sum(name in flat_keys() or name in _FLAT_BLOCKS for name in names)
    return flat > sum(name in sections() or name in FOREIGN_BLOCKS for name in names)


def spell(path: Path, *, flat: bool) -> tuple[Path, Form | None]:
    """Return a path in ppfleetx's or the schema's names, and the form it was written in.

    None: it is no other form's. `flat` allows keys without a section.
    """
    if path[0] == _JULY and len(path) > 1:
        return spell(path[1:], flat=True)[0], "fleetx-2022-07"
    if path[0] == "Eval" and len(path) > 1:
        return ("Offline_Eval", *path[1:]), "fleetx-2022-08"
    if path[0] == "Global" and len(path) > 1 and path[1] in _engine_names():
        return ("Engine", *path[1:]), "ppfleetx-transformer"
    if flat and path[0] in _FLAT_BLOCKS:
        return (*_FLAT_BLOCKS[path[0]].split("."), *path[1:]), "fleetx-2022-07"
    if flat and path[0] in flat_keys():
        return (*flat_keys()[path[0]].split("."), *path[1:]), "fleetx-2022-07"
    return path, None


def form_of(path: Path) -> Form:
    """Return the form that a key of ppfleetx's table belongs to."""
    august = path[0] == "Quantization" or path == ("Engine", "use_recompute")
    return "fleetx-2022-08" if august else "ppfleetx"


def is_block(dotted: str) -> bool:
    """Tell whether a spelled path is a block in either set of names."""
    return dotted in FOREIGN_BLOCKS or (dotted in all_keys() and dotted not in leaf_keys())


def is_opaque(dotted: str) -> bool:
    """Tell whether what stands below is not looked at."""
    return dotted in OPAQUE


def known_names() -> list[str]:
    """Return every path of either set of names, for suggestions."""
    return [*all_keys(), *sorted(FOREIGN_BLOCKS), *FOREIGN]
