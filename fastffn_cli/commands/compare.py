"""`fastffn compare`: whether a cheap stage 1 pays, on one's own data and machine."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from fastffn_cli import ui
from fastffn_cli.commands.options import DeviceOption, JsonOption, OverrideOption
from fastffn_cli.config.complete import complete_plan_name

PlanOption = Annotated[
    str,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="The plan: a YAML file, the bare name of a shipped one, or - for stdin.",
        autocompletion=complete_plan_name,
        rich_help_panel="Configuration",
    ),
]


def run(
    config: PlanOption,
    override: OverrideOption = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Folder of the comparison; the plan's `out`."),
    ] = None,
    report_only: Annotated[
        bool,
        typer.Option("--report-only", metavar="", help="Train nothing; report what is there."),
    ] = False,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", min=1, metavar="N", help="Runs at a time; the plan's `jobs`."),
    ] = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train the arms of a plan at equal tokens and equal seconds, and say which to pick.

    Every arm gets its own learning rate from a sweep, and one run for each seed. The same command
    goes on where it was stopped.

    **Examples**

    `fastffn compare -c compare-demo -o Data.dataset.input_dir=data/book`

    `fastffn compare -c plan.yaml -o seeds=[1,2,3,4,5] --jobs 2`

    `fastffn compare -c plan.yaml --report-only --json`
    """
    from fastffn_cli.comparison.plan import PLAN_FILE, load_plan

    overrides = [*(override or ()), *([f"jobs={jobs}"] if jobs else [])]
    plan = load_plan(config, overrides, out_dir=out, device=device)
    from fastffn_cli.engine.device import use_device

    section = plan.baseline.config.Global
    form = plan.baseline.config.Fused.low_rank_ffn
    wanted = "cpu" if report_only else section.device
    place = use_device(
        wanted,
        threads=plan.threads,
        fast_math=section.cpu_fast_math,
        kernels=section.cpu_kernels,
        low_rank_ffn=form,
    )
    if not report_only:
        from fastffn_cli.engine.kernels import prepare_kernels

        missing = prepare_kernels(place, wanted=section.cpu_kernels, say=ui.say, low_rank_ffn=form)
        if missing:
            ui.notice(missing)
        from fastffn_cli.comparison.course import look_at_arms, run_comparison

        configs, data = look_at_arms(plan, place)
        words = ["fastffn", "compare", "-c", config]
        for argument in overrides:
            words += ["-o", argument]
        words += ["--out", str(out)] if out else []
        words += ["--device", device] if device else []
        if config == "-":  # the folder has what came from stdin, all options included
            words = ["fastffn", "compare", "-c", str(plan.out_dir / PLAN_FILE)]
        run_comparison(plan, place, configs, data=data, command=shlex.join(words))
    _report(plan.out_dir, as_json)


def _report(out_dir: Path, as_json: bool) -> None:
    from fastffn_cli.comparison.report import write_report
    from fastffn_cli.comparison.results import load_results

    results = load_results(out_dir)
    report = write_report(results, out_dir)
    ui.say(report.sentence)
    ui.say(f"  report      {report.html_path}")
    ui.say(f"  as text     {report.markdown_path}")
    if as_json:
        from dataclasses import asdict

        ui.data_json({"sentence": report.sentence, **_plain(asdict(results))})


def _plain(value: Any) -> Any:
    """Turn paths into text, for JSON."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
