"""Completion of `-c` and `-o` in the shell. Cheap to import: the schema is read on demand."""

from __future__ import annotations

from pathlib import Path


def complete_config_name(incomplete: str) -> list[str]:
    """Return shipped names, YAML files and folders that begin with what was typed."""
    from fastffn_cli.config.shipped import shipped_names

    return _complete_file(incomplete, shipped_names())


def complete_plan_name(incomplete: str) -> list[str]:
    """Return shipped plans of `fastffn compare`, YAML files and folders that begin like this."""
    from fastffn_cli.config.shipped import shipped_plans

    return _complete_file(incomplete, shipped_plans())


def _complete_file(incomplete: str, shipped: list[str]) -> list[str]:
    names = [] if "/" in incomplete else shipped
    folder = Path(incomplete).parent if incomplete.rpartition("/")[2] else Path(incomplete or ".")
    try:
        entries = sorted(folder.expanduser().iterdir())
    except OSError:
        entries = []
    prefix = incomplete[: incomplete.rfind("/") + 1]
    for entry in entries:
        if entry.suffix in (".yaml", ".yml"):
            names.append(prefix + entry.name)
        elif entry.is_dir() and not entry.name.startswith("."):
            names.append(f"{prefix}{entry.name}/")
    return [name for name in names if name.startswith(incomplete)]


def complete_override(incomplete: str) -> list[tuple[str, str]]:
    """Return `Section.key=` with its meaning, or the choices once the key is there."""
    from fastffn_cli.config.dump import format_value
    from fastffn_cli.config.keys import leaf_keys

    path, equals, begun = incomplete.partition("=")
    keys = leaf_keys()
    if equals:
        key = keys.get(path)
        choices = [format_value(choice) for choice in key.choices] if key else []
        return [(f"{path}={choice}", "") for choice in choices if choice.startswith(begun)]
    return [
        (f"{name}=", key.description)
        for name, key in keys.items()
        if name.lower().startswith(incomplete.lower())
    ]
