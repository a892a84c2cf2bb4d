"""`fastffn config`: the resolved configuration, the meaning of a key, the schema."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from fastffn_cli import ui
from fastffn_cli.commands.options import JsonOption, OverrideOption
from fastffn_cli.config.complete import complete_config_name
from fastffn_cli.errors import UserError

if TYPE_CHECKING:
    from fastffn_cli.config.load import Resolved


def _complete_key(incomplete: str) -> list[tuple[str, str]]:
    from fastffn_cli.config.keys import all_keys

    return [
        (path, key.description)
        for path, key in all_keys().items()
        if path.lower().startswith(incomplete.lower())
    ]


def run(
    key: Annotated[
        str | None,
        typer.Argument(
            metavar="KEY",
            help="A key or section to explain: Optimizer.lr.max_lr, or max_lr if that is unique.",
            autocompletion=_complete_key,
        ),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(
            "--config",
            "-c",
            metavar="FILE",
            help="YAML file, the bare name of a shipped config, or - for stdin.",
            rich_help_panel="Configuration",
            autocompletion=complete_config_name,
        ),
    ] = None,
    override: OverrideOption = None,
    plain: Annotated[
        bool, typer.Option("--plain", metavar="", help="Leave out the origin of each value.")
    ] = False,
    schema: Annotated[
        bool, typer.Option("--schema", metavar="", help="Print a JSON schema for editors.")
    ] = False,
    shipped: Annotated[
        bool,
        typer.Option("--list", metavar="", help="List the configs that come with the program."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Print the resolved configuration, explain a key, or export the schema.

    **Examples**

    `fastffn config -c gpt-124m-fastffn -o Engine.max_steps=1e4`

    `fastffn config Optimizer.lr.max_lr`

    `fastffn config --plain > my.yaml`
    """
    if sum((schema, shipped, key is not None)) > 1:
        raise UserError(
            "KEY, --schema and --list exclude each other.", hint="Type one of them at a time."
        )
    if schema:
        _print_schema()
    elif shipped:
        _list_shipped(as_json)
    elif key is not None:
        _explain(key, config, override, as_json)
    else:
        _print_resolved(config, override, plain, as_json)


def _load(config: str | None, override: list[str] | None, *, listed: bool = False) -> Resolved:
    """Load what was named (or the defaults), and say its warnings on stderr.

    `listed`: what became of FleetX's keys is said at length afterwards.
    """
    from fastffn_cli.config.load import default_config, load_config

    overrides = override or ()
    resolved = (
        load_config(config, overrides, processes=None) if config else default_config(overrides)
    )
    for line in resolved.warnings:
        ui.warn(line)
    for line in resolved.notices:
        if line != resolved.dialect.summary or not listed:
            ui.notice(line)
    return resolved


def _print_resolved(
    config: str | None, override: list[str] | None, plain: bool, as_json: bool
) -> None:
    from fastffn_cli.config.dump import dump_config, dump_with_origins

    resolved = _load(config, override, listed=True)
    if as_json:
        origins = {path: str(origin) for path, origin in resolved.origins.items()}
        ui.data_json(
            {
                "config": resolved.config.model_dump(mode="json"),
                "origins": origins,
                "dialect": resolved.dialect.as_json(),
            }
        )
    elif plain:
        ui.data(dump_config(resolved.config), end="")
    else:
        ui.data(dump_with_origins(resolved.config, resolved.origins), end="")
    _list_moves(resolved)


def _list_moves(resolved: Resolved) -> None:
    """Say what became of the keys of a FleetX file, one line each."""
    dialect = resolved.dialect
    moves = [move for move in dialect.moves if move.origin.kind == "file"]
    if dialect.summary is None:
        return
    lines = [move.line() for move in moves]
    width = max((len(line.partition("  ")[0]) for line in lines), default=0)
    for line in lines:
        place, _, text = line.partition("  ")
        ui.say(f"{place:<{width}}  {text}")
    kept = f"{dialect.unchanged} as {'it is' if dialect.unchanged == 1 else 'they are'}"
    ui.say(f"{dialect.summary.partition(' (fastffn config')[0]}, {kept}")


def _explain(key: str, config: str | None, override: list[str] | None, as_json: bool) -> None:
    from fastffn_cli.config.explain import explain_key, find_key

    path = find_key(key)
    rows = explain_key(path, _load(config, override) if config or override else None)
    if as_json:
        ui.data_json({"key": path, **dict(rows)})
        return
    ui.card(path, rows, to_stdout=True)


def _print_schema() -> None:
    import json

    from fastffn_cli.config.table import json_schema

    ui.data(json.dumps(json_schema(), indent=2, ensure_ascii=False))


def _list_shipped(as_json: bool) -> None:
    from fastffn_cli.config.shipped import shipped_dir, shipped_names

    names = shipped_names()
    if as_json:
        ui.data_json(names)
        return
    for name in names:
        ui.data(name)
    ui.say(f"{len(names)} configs in {shipped_dir()}")
