"""`fastffn config KEY`: what a key is, what it may be, and what it is now."""

from __future__ import annotations

import difflib

from fastffn_cli.config.dialect_spelling import spell
from fastffn_cli.config.dump import format_value
from fastffn_cli.config.fleetx_keys import FOREIGN
from fastffn_cli.config.keys import Key, all_keys, leaf_keys, suggest_key
from fastffn_cli.config.load import Resolved, flatten
from fastffn_cli.errors import ConfigError


def find_key(name: str) -> str:
    """Return the dotted key that `name` means: itself in any case, a unique end, FleetX's name.

    Raises ConfigError with the candidates, or with the nearest key.
    """
    keys = all_keys()
    lowered = {key.lower(): key for key in keys}
    if found := lowered.get(name.lower()):
        return found
    ends = [key for key in keys if key.lower().endswith("." + name.lower())]
    if len(ends) == 1:
        return ends[0]
    if ends:
        text = f"'{name}' is the name of {len(ends)} keys: {', '.join(ends)}. Type one of them"
        raise ConfigError("the key", [text])
    if found := _of_fleetx(name):
        return found
    hint = suggest_key(name)
    if not hint and (near := difflib.get_close_matches(name.lower(), lowered, 1, 0.5)):
        hint = f" Did you mean '{lowered[near[0]]}'?"
    raise ConfigError(
        "the key",
        [f"unknown key '{name}'.{hint}"],
        hint="fastffn config   prints every key",
    )


def _of_fleetx(name: str) -> str | None:
    """Return the key that a name of FleetX's means; ConfigError for one without effect."""
    path = ".".join(spell(tuple(name.split(".")), flat=True)[0])
    rule = FOREIGN.get(path)
    if rule is None:
        return path if path in all_keys() else None
    if rule.to is None:
        what = "is read" if rule.with_others else "has no effect"
        raise ConfigError("the key", [f"'{name}' is a key of FleetX's and {what}: {rule.why}"])
    return rule.to if isinstance(rule.to, str) else "Optimizer.lr.warmup_rate"


def explain_key(path: str, resolved: Resolved | None = None) -> list[tuple[str, str]]:
    """Return `label, text` rows about one key; with `resolved`, also its value and origin there."""
    key = all_keys()[path]
    if path not in leaf_keys() or key.expected == "a block of keys":
        return _explain_block(path, key)
    rows = [("meaning", key.description), ("type", type_text(key)), ("default", default_text(key))]
    if key.kinds:
        rows.append(("belongs to", f"Model.ffn.kind: {', '.join(key.kinds)}"))
    if resolved is not None:
        values = dict(flatten(resolved.config))
        if path in values:
            origin = resolved.origins[path]
            value = "blank" if values[path] is None else format_value(values[path])
            rows.append(("value", f"{value}   ({origin})"))
        else:
            rows.append(("value", f"none: {resolved.source} has another Model.ffn.kind"))
    rows.append(("write", f"-o {path}={_example(key)}"))
    return rows


def _explain_block(path: str, key: Key) -> list[tuple[str, str]]:
    rows = [("meaning", key.description)]
    for name, inner in all_keys().items():
        if name.rpartition(".")[0] == path:
            rows.append((inner.name, inner.description))
    return rows


def type_text(key: Key) -> str:
    """Say what a value may be, in words."""
    if key.name == "kind":
        return "one of " + ", ".join(repr(choice) for choice in key.choices)
    if key.path == "Data.dataset.split":
        return "one to three weights: '949,50,1' or [949, 50, 1]"
    return key.expected


def default_text(key: Key) -> str:
    """Return the default as it is written in YAML, or `blank`."""
    if key.default is None:
        return "dense" if key.name == "kind" else "blank"
    return format_value(key.default)


def _example(key: Key) -> str:
    """Return a value to type: the default, another choice, or a placeholder."""
    others = [choice for choice in key.choices if choice != key.default]
    if others:
        shown = format_value(others[0])
        return f"[{shown}]" if key.expected.startswith("a list") else shown
    if key.default is None:
        return "N" if "integer" in key.expected else "..."
    return format_value(key.default)
