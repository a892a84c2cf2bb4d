"""The YAML files that come with the program, and how `-c NAME` finds one. Imports nothing heavy."""

from __future__ import annotations

import difflib
from pathlib import Path

from fastffn_cli.errors import ConfigError

PLAN_PREFIX = "compare-"  # shipped files that are plans of `fastffn compare`, not configurations


def shipped_dir() -> Path:
    """Return the folder of the shipped files: in the wheel, or `configs/` of a source tree."""
    package_dir = Path(__file__).resolve().parent.parent
    in_wheel = package_dir / "shipped_configs"
    return in_wheel if in_wheel.is_dir() else package_dir.parent / "configs"


def shipped_names() -> list[str]:
    """Return the bare names that `-c` accepts, sorted."""
    names = (path.stem for path in shipped_dir().glob("*.yaml"))
    return sorted(name for name in names if not name.startswith(PLAN_PREFIX))


def shipped_plans() -> list[str]:
    """Return the bare names that `fastffn compare -c` accepts, sorted."""
    return sorted(path.stem for path in shipped_dir().glob(f"{PLAN_PREFIX}*.yaml"))


def find_plan_file(source: str) -> Path:
    """Return the file of `fastffn compare -c SOURCE`; raises ConfigError when there is none."""
    return _find_file(source, shipped_plans(), "plan", f"Shipped: {', '.join(shipped_plans())}")


def find_config_file(source: str) -> Path:
    """Return the file of `-c SOURCE`: a path, or the name of a shipped config.

    Raises ConfigError (with the nearest name) when there is neither.
    """
    hint = "fastffn config --list   names the shipped configs"
    return _find_file(source, shipped_names(), "config", hint)


def _find_file(source: str, shipped: list[str], what_kind: str, hint: str) -> Path:
    path = Path(source).expanduser()
    if path.is_file():
        return path
    name = source.removesuffix(".yaml").removesuffix(".yml")
    if name in shipped and not path.is_file():
        return shipped_dir() / f"{name}.yaml"
    if path.is_dir():
        inside = path / "config.yaml"
        what = f"Type -c {inside}" if inside.is_file() else "Name a YAML file in it"
        raise ConfigError(source, [f"{source} is a folder. {what}"])
    if path.exists():
        raise ConfigError(source, [f"{source} is not a regular file. Use -c - to read a pipe"])
    known = [*shipped, *(str(file) for file in _neighbours(path))]
    forms = [known_name for known_name in shipped if name and known_name.startswith(name + "-")]
    near = (
        forms
        or difflib.get_close_matches(name, known, 1, 0.6)
        or difflib.get_close_matches(Path(name).name, known, 1, 0.6)
    )
    names = " or ".join(f"'{item}'" for item in near)
    suggestion = f" Did you mean {names}?" if near else ""
    raise ConfigError(
        source,
        [f"there is no file '{source}' and no shipped {what_kind} of that name.{suggestion}"],
        hint=hint,
    )


def _neighbours(path: Path) -> list[Path]:
    """List the YAML files beside a missing one."""
    try:
        return sorted(path.parent.glob("*.y*ml"))
    except OSError:
        return []
