"""The key table of the README and the JSON schema, both made from the one schema."""

from __future__ import annotations

from typing import Any

from fastffn_cli.config.dump import format_value
from fastffn_cli.config.explain import default_text, type_text
from fastffn_cli.config.keys import all_keys, leaf_keys
from fastffn_cli.config.schema import Config


def key_table_markdown() -> str:
    """Return a Markdown table of every key: name, default, what it may be, what it means."""
    lines = ["| key | default | values | meaning |", "|---|---|---|---|"]
    for path, key in leaf_keys().items():
        cells = (f"`{path}`", f"`{default_text(key)}`", type_text(key), key.description)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    notes = all_keys()["notes"]
    lines.append(f"| `notes` | `{format_value({})}` | anything | {notes.description} |")
    return "\n".join(lines) + "\n"


_RENAMED_BOUNDS = {
    "ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"
}  # fmt: skip


def json_schema() -> dict[str, Any]:
    """Return a JSON schema (draft 2020-12) of a configuration file, for editors.

    Every key may be blank, and every block may say `_inherited_`, as the loader allows.
    """
    schema = Config.model_json_schema()
    for definition in [schema, *schema["$defs"].values()]:
        required = definition.get("required", ())
        for name, value in definition["properties"].items():
            spelled = _spell_bounds(value)
            reference = spelled.get("$ref", "").rpartition("/")[2]
            if reference:  # pydantic drops a description that its block has as well
                spelled.setdefault("description", schema["$defs"][reference]["description"])
            # `kind: low_rank` is what tells a block of options from the other kinds' blocks.
            definition["properties"][name] = spelled if name in required else _allow_blank(spelled)
        definition["properties"]["_inherited_"] = {
            "description": "False forgets what the files below say about this block.",
            "type": "boolean",
        }
    schema["properties"]["_base_"] = {
        "description": "A file, or a list of files, whose settings this one builds on.",
        "type": ["string", "array", "null"],
        "items": {"type": "string"},
    }
    split = schema["$defs"]["Dataset"]["properties"]["split"]
    split["anyOf"].insert(1, {"type": "array", "items": {"type": "number"}})
    schema["title"] = "fastffn configuration"
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _spell_bounds(value: Any) -> Any:
    """Spell pydantic's bounds of an optional integer (`ge`) as JSON schema does (`minimum`)."""
    if isinstance(value, dict):
        return {
            _RENAMED_BOUNDS.get(name, name): _spell_bounds(item) for name, item in value.items()
        }
    return [_spell_bounds(item) for item in value] if isinstance(value, list) else value


def _allow_blank(value: dict[str, Any]) -> dict[str, Any]:
    """Allow null, which stands for the default."""
    if {"type": "null"} in value.get("anyOf", ()):
        return value
    outer: dict[str, Any] = {
        name: value[name] for name in ("default", "description", "title") if name in value
    }
    inner = {name: item for name, item in value.items() if name not in outer}
    outer["anyOf"] = [inner, {"type": "null"}]
    return outer
