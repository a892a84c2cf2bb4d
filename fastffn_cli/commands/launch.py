"""`fastffn launch`: one command in many processes, on one machine or several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastffn_cli import ui
from fastffn_cli.distributed.cluster import DEFAULT_PORT
from fastffn_cli.errors import UserError

if TYPE_CHECKING:
    from fastffn_cli.commands.launched import LaunchedCommand
    from fastffn_cli.distributed.launch_plan import LaunchPlan
    from fastffn_cli.distributed.launcher import Job

# Options behind the command's name are the command's, with `--` before it or without.
CONTEXT = {"allow_interspersed_args": False}
HERE, NODES, RUN = "This machine", "Several machines", "The run"


def run(
    context: typer.Context,
    command: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="-- COMMAND ...",
            help="What every process runs: pretrain or posttrain with its own options.",
            show_default=False,
        ),
    ] = None,
    nproc: Annotated[
        int | None,
        typer.Option(
            "--nproc",
            metavar="N",
            min=1,
            help="Processes of this machine; by default what Distributed's degrees need.",
            rich_help_panel=HERE,
        ),
    ] = None,
    devices: Annotated[
        str | None,
        typer.Option(
            "--devices",
            metavar="CARDS",
            help="Cards of this machine, a process each: 0-7, or 0,1.",
            rich_help_panel=HERE,
        ),
    ] = None,
    nnodes: Annotated[
        int,
        typer.Option("--nnodes", metavar="N", min=1, help="Machines.", rich_help_panel=NODES),
    ] = 1,
    node_rank: Annotated[
        int | None,
        typer.Option(
            "--node-rank",
            metavar="K",
            min=0,
            help="Which of them this one is, from 0.",
            rich_help_panel=NODES,
        ),
    ] = None,
    master: Annotated[
        str | None,
        typer.Option(
            "--master",
            metavar="HOST:PORT",
            help="Where all meet: the machine of node rank 0, and a free port of it.",
            rich_help_panel=NODES,
        ),
    ] = None,
    rank_table: Annotated[
        Path | None,
        typer.Option(
            "--rank-table",
            metavar="FILE",
            help="A rank table says all of this: machines, cards, ranks (docs/rank-tables.md).",
            rich_help_panel=NODES,
        ),
    ] = None,
    node: Annotated[
        str | None,
        typer.Option(
            "--node",
            metavar="HOST",
            help="This machine's name in the table; by default found by its addresses.",
            rich_help_panel=NODES,
        ),
    ] = None,
    ranks: Annotated[
        str | None,
        typer.Option(
            "--ranks",
            metavar="[A,B]",
            help="Ranks of the table to start here, A to B-1, as in run_distribute.sh.",
            rich_help_panel=NODES,
        ),
    ] = None,
    base_port: Annotated[
        int | None,
        typer.Option(
            "--base-port",
            metavar="PORT",
            help="With a table: card N of a machine listens at PORT + N; by default "
            f"{DEFAULT_PORT}.",
            rich_help_panel=NODES,
        ),
    ] = None,
    max_restarts: Annotated[
        int,
        typer.Option(
            "--max-restarts",
            metavar="K",
            min=0,
            help="Start all again from the newest checkpoint, so often, after a failure that may "
            "pass.",
            rich_help_panel=RUN,
        ),
    ] = 0,
    log_dir: Annotated[
        Path,
        typer.Option(
            "--log-dir",
            metavar="DIR",
            help="Every launch makes a folder for its ranks' logs in it, named for the time.",
            rich_help_panel=RUN,
        ),
    ] = Path("launch-logs"),
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            metavar="",
            help="Check everything, show rank, card and address of each process, and stop.",
            rich_help_panel=RUN,
        ),
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", metavar="", help="With --dry-run: one JSON value.", rich_help_panel=RUN
        ),
    ] = False,
) -> None:
    """Run a command in many processes, by Paddle's own launcher.

    Rank 0 speaks here, every rank in a log file of its own. The first process that fails ends all
    others, and the launch with its error and its exit code. Ctrl-C and SIGTERM reach every process,
    which finishes its step and saves. More in docs/distributed.md.

    **Examples**

    `fastffn launch --nproc 2 -- pretrain -c my.yaml -o Distributed.dp_degree=2`

    `fastffn launch --devices 0-7 --max-restarts 3 -- pretrain -c my.yaml`

    `fastffn launch --nnodes 2 --node-rank 0 --master 10.0.0.1:6170 -- pretrain -c my.yaml`

    `fastffn launch --rank-table hccl_4s_32p.json --ranks [0,8] -- pretrain -c my.yaml`
    """
    from fastffn_cli.commands.launched import read_command
    from fastffn_cli.distributed.launch_plan import plan_by_hand
    from fastffn_cli.distributed.rank_table import parse_devices

    if as_json and not dry_run:
        raise UserError("--json is for --dry-run", hint="Add --dry-run, or leave it out.")
    launched = read_command(command or ())
    if rank_table is not None:
        by_hand = {
            "--nproc": nproc, "--devices": devices, "--node-rank": node_rank, "--master": master,
            "--nnodes": nnodes if nnodes > 1 else None,
        }  # fmt: skip
        given = [name for name, value in by_hand.items() if value is not None]
        if given:
            raise UserError(
                f"a rank table says what {', '.join(given)} would say",
                hint="Leave out one or the other.",
            )
        plan = _plan_by_table(
            launched, rank_table, node, ranks, DEFAULT_PORT if base_port is None else base_port
        )
    else:
        for name, value in (("--node", node), ("--ranks", ranks), ("--base-port", base_port)):
            if value is not None:
                raise UserError(f"{name} is for a rank table", hint="Add --rank-table FILE.")
        plan = plan_by_hand(
            device=launched.device,
            nproc=nproc,
            devices=None if devices is None else parse_devices(devices, boards=False),
            nnodes=nnodes,
            node_rank=node_rank,
            master=master,
            degrees=launched.degrees,
        )
    launched.check(plan.world_size)
    if dry_run:
        show_plan(plan, launched.words, as_json=as_json)
        return
    start(plan, launched.job(_given_options(context)), log_dir, max_restarts=max_restarts)


def _given_options(context: typer.Context) -> list[str]:
    """Return the options that were typed before the command, each as its name and its value."""
    words: list[str] = []
    for parameter in context.command.params:
        name = parameter.name or ""
        source = context.get_parameter_source(name)
        typed = source is not None and source.name == "COMMANDLINE"
        if typed and parameter.param_type_name == "option":
            words += [parameter.opts[0], str(context.params[name])]
    return words


def start(plan: LaunchPlan, job: Job, log_dir: Path, *, max_restarts: int) -> None:
    """Start a plan's processes and stay until they have ended."""
    from fastffn_cli.distributed.launcher import launch, make_log_dir, thread_variables
    from fastffn_cli.distributed.ports import check_ports
    from fastffn_cli.engine.cpu import usable_cores

    check_ports(plan)  # before there is a folder
    count = len(plan.processes)
    folder = make_log_dir(log_dir, plan)
    threads = thread_variables(count)
    if threads and count > 1:
        spelled = " ".join(f"{name}={value}" for name, value in threads.items())
        ui.notice(f"{count} processes share the {usable_cores()} cores of this machine: {spelled}")
    ui.say(f"{_ranks(plan)} of {plan.world_size}, logs in {folder}")
    launch(plan, job, folder, max_restarts=max_restarts)


def _plan_by_table(
    launched: LaunchedCommand, file: Path, node: str | None, ranks: str | None, base_port: int
) -> LaunchPlan:
    from fastffn_cli.distributed.cluster import ClusterLayout
    from fastffn_cli.distributed.launch_plan import (
        find_node_of_ranks,
        parse_ranks,
        plan_by_layout,
    )
    from fastffn_cli.distributed.rank_table import layout_of, read_rank_table

    if node is not None and ranks is not None:
        raise UserError("--node and --ranks both say which machine this is", hint="Give one.")
    table = read_rank_table(file)
    wanted = None if ranks is None else parse_ranks(ranks)
    layout = (
        layout_of(table, node)
        if wanted is None
        else ClusterLayout(
            table.nodes, find_node_of_ranks([each.ranks for each in table.nodes], wanted)
        )
    )
    return plan_by_layout(
        layout, device=launched.device, base_port=base_port, ranks=wanted, table=file
    )


def _ranks(plan: LaunchPlan) -> str:
    ranks = [process.rank for process in plan.processes]
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"


def show_plan(plan: LaunchPlan, words: Sequence[str], *, as_json: bool) -> None:
    """Print what would be started: rank, card, address and variables that we set, if any."""
    described = _describe(plan, words)
    if as_json:
        ui.data_json(described)
        return
    chosen = "chosen at the start"
    rows = [
        (
            str(process["rank"]),
            "-" if process["device"] is None else str(process["device"]),
            process["endpoint"] or chosen,
        )
        for process in described["processes"]
    ]
    title = f"machine {plan.node_rank} of {plan.node_count}, {plan.world_size} processes in all"
    ui.table(title, ("rank", "card", "endpoint"), rows)
    shared, own = _split_variables([process["variables"] for process in described["processes"]])
    if shared:
        ui.data("every process:\n" + _lines(shared))
    for process, variables in zip(plan.processes, own, strict=True):
        if variables:
            ui.data(f"rank {process.rank}:\n{_lines(variables)}")
    if plan.master:
        ui.say(f"the machines meet at {plan.master}")
    ui.say("dry run: nothing was started")


def _describe(plan: LaunchPlan, words: Sequence[str]) -> dict[str, Any]:
    from fastffn_cli.distributed.launcher import thread_variables

    threads = thread_variables(len(plan.processes))
    return {
        "command": list(words),
        "device": plan.device,
        "world_size": plan.world_size,
        "nodes": plan.node_count,
        "node_rank": plan.node_rank,
        "master": plan.master,
        "processes": [
            {
                "rank": process.rank,
                "device": process.device,
                "endpoint": process.endpoint,
                "variables": {**process.variables, **threads},
            }
            for process in plan.processes
        ],
    }


def _split_variables(
    each: Sequence[dict[str, str]],
) -> tuple[dict[str, str], list[dict[str, str]]]:
    """Part what all processes have in common from what is each one's own."""
    shared = {
        name: value
        for name, value in each[0].items()
        if len(each) > 1 and all(other.get(name) == value for other in each)
    }
    return shared, [
        {name: value for name, value in own.items() if name not in shared} for own in each
    ]


def _lines(variables: dict[str, str]) -> str:
    return "\n".join(f"  {name}={value}" for name, value in variables.items())
