"""A Config as YAML that reads back equal, by our rules and by those of YAML 1.1."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

from fastffn_cli.config.keys import all_keys
from fastffn_cli.config.origin import Origin
from fastffn_cli.config.rules import NO_EFFECT
from fastffn_cli.config.scalars import parse_scalar
from fastffn_cli.config.schema import Config


class _Dumper(yaml.SafeDumper):
    """Writes every value in one line, and quotes text that either YAML would read as a number."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "'" if not isinstance(parse_scalar(text), str) or text == "<<" else None
    if not text.isprintable():
        style = '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(
    tuple, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items)
)


def format_value(value: Any) -> str:
    """Return one value as it is written after a colon, in one line."""
    if isinstance(value, str) and not value.isprintable():
        return json.dumps(value)
    text = yaml.dump(
        [value], Dumper=_Dumper, default_flow_style=True, width=2**31, allow_unicode=True
    )
    return text.strip()[1:-1]


def dump_config(config: Config) -> str:
    """Return the resolved configuration as YAML; `parse_config_file` reads it back equal.

    Keys without effect are left out at their default: nobody asked for them.
    """
    values = config.model_dump()
    defaults = Config().model_dump()
    for key in NO_EFFECT:
        path = key.split(".")
        if _find(values, path) == _find(defaults, path):
            _remove(values, path)
    return "\n".join(line for line, _ in _lines(values, 0, "")) + "\n"


def _find(values: dict[str, Any], path: list[str]) -> Any:
    for name in path:
        values = values[name]
    return values


def _remove(values: dict[str, Any], path: list[str]) -> None:
    """Remove a key, and the block it leaves empty."""
    block = _find(values, path[:-1])
    del block[path[-1]]
    if not block:
        _remove(values, path[:-1])


def dump_with_origins(config: Config, origins: dict[str, Origin]) -> str:
    """Return the resolved configuration as YAML, each value's origin in a comment behind it.

    An override is shown as `-o`; a blank value says what it stands for.
    """
    lines = _lines(config.model_dump(), 0, "")
    width = max(len(line) for line, key in lines if key and len(line) <= 60)
    text = []
    for line, key in lines:
        origin = origins.get(key)
        blank = re.search(r"\((blank: .*?)\)", all_keys()[key].description) if origin else None
        meaning = f" ({blank[1]})" if blank and line.endswith(":") else ""
        text.append(f"{line:<{width}}  # {_label(origin)}{meaning}" if origin else line)
    return "\n".join(text) + "\n"


def _label(origin: Origin) -> str:
    if origin.kind == "override":
        return (origin.text or "-o").split()[0]
    return str(origin)


def _lines(values: dict[str, Any], depth: int, prefix: str) -> list[tuple[str, str]]:
    """Return the lines of a block with the dotted key of each, empty for the head of a block."""
    lines: list[tuple[str, str]] = []
    for name, value in values.items():
        key = f"{prefix}{name}"
        head = f"{'  ' * depth}{format_value(name)}:"
        if isinstance(value, dict) and value:
            lines.append((head, ""))
            lines += _lines(value, depth + 1, key + ".")
        else:
            shown = "" if value is None else f" {format_value(value)}"
            lines.append((head + shown, key))
    return lines
