"""The schema as a flat list of dotted keys: for suggestions, explanations, tables, completion."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from fastffn_cli.config.ffn import FFN_KINDS
from fastffn_cli.config.schema import Config

# What other programs call our keys; FleetX's names are read (`fleetx_keys`).
RENAMED = {
    "Model.dropout": "Model.hidden_dropout_prob",
    "Model.ffn.lr_scale": "Model.ffn.lr_rule",
    "Generation.max_new_tokens": "Generation.max_dec_len",
    "Engine.save_load.save_dir": "Engine.save_load.output_dir",
}


@dataclass(frozen=True)
class Key:
    """One key of the schema. `kinds` names the feed-forward kinds that an option belongs to."""

    path: str
    field: FieldInfo
    kinds: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition(".")[2]

    @property
    def default(self) -> Any:
        """The value when nothing is written; None when it is decided later."""
        value = self.field.get_default(call_default_factory=True)
        return None if value is PydanticUndefined else value

    @property
    def description(self) -> str:
        """The explanation, one or two sentences."""
        return self.field.description or ""

    @property
    def expected(self) -> str:
        """What a value must be, in words: `an integer of at least 1`."""
        return describe_type(self.field.annotation, self.field.metadata)

    def accepts(self, value: Any) -> bool:
        """Tell whether a value is of the kind this key takes (ranges left aside)."""
        if self.choices:
            return value in self.choices
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            return False
        if isinstance(value, str):
            return self.expected.startswith("text") and ":" not in value
        return self.expected.startswith("a number" if isinstance(value, float) else "an integer")

    @property
    def choices(self) -> tuple[Any, ...]:
        """The values of a key that has a fixed list of them."""
        if self.name == "kind":
            return tuple(FFN_KINDS)
        inner = strip_optional(self.field.annotation)
        if get_origin(inner) is tuple:
            inner = get_args(inner)[0]
        if inner is bool:
            return (True, False)
        return get_args(inner) if get_origin(inner) is Literal else ()


def strip_optional(annotation: Any) -> Any:
    """Return X of `X | None` and of `Annotated[X, ...]`."""
    if get_origin(annotation) in (Union, types.UnionType):
        members = [item for item in get_args(annotation) if item is not type(None)]
        annotation = members[0] if len(members) == 1 else annotation
    return get_args(annotation)[0] if hasattr(annotation, "__metadata__") else annotation


def describe_type(annotation: Any, metadata: list[Any]) -> str:
    """Say in words what a value of this type and range is."""
    inner = strip_optional(annotation)
    if inner is bool:
        return "true or false"
    if get_origin(inner) is Literal:
        values = get_args(inner)
        shown = ", ".join(repr(value) for value in values)
        return shown if len(values) == 1 else f"one of {shown}"
    if get_origin(inner) is tuple:
        item = strip_optional(get_args(inner)[0])
        if get_origin(item) is Literal:
            return f"a list of {' and '.join(repr(value) for value in get_args(item))}"
        return "a list of " + {int: "integers", float: "numbers", str: "text"}[item]
    if inner is str:
        wanted = any(isinstance(item, MinLen) for item in metadata)
        return "text that is not empty" if wanted else "text"
    if inner in (int, float):
        noun = "an integer" if inner is int else "a number"
        return " ".join([noun, *describe_range(metadata)])
    return "a block of keys"


def describe_range(metadata: list[Any]) -> list[str]:
    """Say the bounds: `of at least 0`, `and below 1`."""
    words: list[str] = []
    for item in metadata:
        if isinstance(item, Ge):
            words.append(f"of at least {item.ge}")
        elif isinstance(item, Gt):
            words.append(f"above {item.gt}")
        elif isinstance(item, Le):
            words.append(f"{'and ' if words else ''}at most {item.le}")
        elif isinstance(item, Lt):
            words.append(f"{'and ' if words else ''}below {item.lt}")
    return words


def walk_keys(model: type[BaseModel], prefix: str, in_kind: bool = False) -> Iterator[Key]:
    """Yield every section, block and key below `prefix`."""
    for name, field in model.model_fields.items():
        path = f"{prefix}.{name}" if prefix else name
        yield Key(path, field, _kinds_with(name) if in_kind and name != "kind" else ())
        inner = strip_optional(field.annotation)
        if get_origin(inner) is None and isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from walk_keys(inner, path)
        elif name == "ffn":
            for options in FFN_KINDS.values():
                yield from walk_keys(options, path, in_kind=True)


def _kinds_with(option: str) -> tuple[str, ...]:
    return tuple(kind for kind, options in FFN_KINDS.items() if option in options.model_fields)


@cache
def all_keys() -> dict[str, Key]:
    """Return every section, block and key by its dotted path, in the order of the schema."""
    keys: dict[str, Key] = {}
    for key in walk_keys(Config, ""):
        keys.setdefault(key.path, key)
    return keys


@cache
def leaf_keys() -> dict[str, Key]:
    """Return the keys that take a value, without sections and blocks."""
    keys = all_keys()
    parents = {path.rpartition(".")[0] for path in keys}
    return {path: key for path, key in keys.items() if path not in parents and path != "notes"}


def sections() -> tuple[str, ...]:
    """Return the names of the sections, without `notes`."""
    return tuple(name for name in Config.model_fields if name != "notes")


def suggest_key(path: str) -> str:
    """Return ` Did you mean '...'?` for an unknown key, or nothing when no key is like it."""
    if found := _nearest(path):
        return " Did you mean " + " or ".join(f"'{name}'" for name in found) + "?"
    return ""


def _nearest(path: str) -> list[str]:
    keys = all_keys()
    if path in RENAMED:
        return [RENAMED[path]]
    parent, _, name = path.rpartition(".")
    lowered = {key.lower(): key for key in keys}
    if path.lower() in lowered:
        return [lowered[path.lower()]]
    siblings = [key for key in keys if key.rpartition(".")[0] == parent]
    if found := _closest(name, siblings, 0.75):
        return found
    if name == "name":  # several blocks have one, and none is meant
        return []
    same = [key for key in keys if key.lower().endswith("." + name.lower())]
    if 0 < len(same) <= 2:
        return same
    if found := _closest(name, list(keys), 0.85):
        return found
    level = [key for key in lowered if key.count(".") == path.count(".")]
    return [lowered[key] for key in difflib.get_close_matches(path.lower(), level, 1, 0.8)]


def _closest(name: str, paths: list[str], cutoff: float) -> list[str]:
    """Return the path whose last part is most like `name`, if it is like enough."""
    last = {path.rpartition(".")[2].lower(): path for path in reversed(paths)}
    return [last[word] for word in difflib.get_close_matches(name.lower(), last, 1, cutoff)]
