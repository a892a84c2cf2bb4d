"""A comparison from its plan to its last run, phase by phase; goes on where it was left."""

from __future__ import annotations

import contextlib
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import fastffn_cli
from fastffn_cli import ui
from fastffn_cli.comparison.budget import steps_of_tokens
from fastffn_cli.comparison.calibration import Calibration, calibrate
from fastffn_cli.comparison.children import check_unchanged, run_all, run_to_end
from fastffn_cli.comparison.plan import PLAN_FILE, Plan
from fastffn_cli.comparison.progress import COLUMNS, Outlook, rows, title
from fastffn_cli.comparison.runs import (
    RunSpec,
    choose_rates,
    downstream_specs,
    final_loss,
    seconds_specs,
    sweep_specs,
    token_specs,
    with_values,
)
from fastffn_cli.config.schema import Config
from fastffn_cli.data.describe import identify_tokens
from fastffn_cli.engine import storage
from fastffn_cli.engine.blueprint import Blueprint, draw_blueprint
from fastffn_cli.engine.device import Device
from fastffn_cli.engine.interrupt import StopRequest, listen
from fastffn_cli.engine.training import versions
from fastffn_cli.errors import ConfigError, DataError, Interrupted, UserError

LOCK_FILE = ".lock"
REDRAW_S = 1.0


def look_at_arms(plan: Plan, device: Device) -> tuple[dict[str, Config], str]:
    """Check data, memory and settings of every arm.

    Return their configurations with vocabulary, and in a line which text they are trained on.
    Raises `ConfigError` where arms could not be compared, and what a run would raise of its own.
    """
    configs: dict[str, Config] = {}
    notices: list[str] = []
    warnings: list[str] = []
    blueprint: Blueprint | None = None
    for arm in plan.arms.values():
        blueprint = draw_blueprint(arm.resolved, device, stage="pretrain", dry_run=True)
        if blueprint.valid is None:
            raise DataError(
                f"{blueprint.folder.path} has no validation part to compare losses on",
                hint="Give it a share: -o Data.dataset.split=90,5,5",
            )
        configs[arm.name] = blueprint.config
        notices += [line for line in blueprint.notices if "holds a run already" not in line]
        warnings += blueprint.warnings
    assert blueprint is not None, "a plan has arms"
    for line in dict.fromkeys(notices):
        ui.notice(line)
    for line in dict.fromkeys(warnings):
        ui.warn(line)
    _check_comparable(plan, configs)
    if plan.section.downstream is not None:
        _look_at_downstream(plan, configs[plan.baseline.name], device)
    return configs, identify_tokens(blueprint.folder)


def run_comparison(
    plan: Plan, device: Device, configs: Mapping[str, Config], *, data: str, command: str
) -> None:
    """Make all runs of a plan that are not over yet.

    `configs` and `data` are what `look_at_arms` found, `command` is what continues the comparison.
    Raises `Interrupted` with everything saved, `UserError` when the plan or the text no longer fits
    the runs or another process is at it, and `RunFailed`.
    """
    view = ui.LiveTable(COLUMNS)
    with _hold(plan.out_dir), listen(view.note) as stop:
        check_unchanged([*sweep_specs(plan), *token_specs(plan, choose_rates(plan))])
        for name, text in plan.files.items():
            storage.write_file(plan.out_dir / name, text)

        def raise_if_stopped() -> None:
            if stop.exit_code is not None:
                raise Interrupted(
                    f"stopped, and what was trained is saved in {plan.out_dir}. Continue with:\n"
                    f"    {command}",
                    exit_code=stop.exit_code,
                )

        def run(words: list[str]) -> subprocess.CompletedProcess[str]:
            done = run_to_end(words, stop)
            raise_if_stopped()
            assert done is not None, "only a stop leaves it unfinished"
            return done

        calibration = _calibrate(plan, configs, data, device, run)
        outlook = Outlook(plan, calibration.paces())
        for specs in _phases(plan, calibration, outlook, view):
            _make(plan, specs, outlook, view, stop)
            raise_if_stopped()


def _make(
    plan: Plan, specs: Sequence[RunSpec], outlook: Outlook, view: ui.LiveTable, stop: StopRequest
) -> None:
    """Make the runs of one phase, with a table of those that are being made."""
    drawn = 0.0

    def show(active: Sequence[RunSpec]) -> None:
        nonlocal drawn
        if time.monotonic() - drawn >= REDRAW_S:
            view.show(title(outlook), rows(active))
            drawn = time.monotonic()

    def note(line: str) -> None:
        left = f"  [{title(outlook)}]" if line.startswith(("done", "diverged")) else ""
        view.note(f"{line}{left}")

    view.begin()
    try:
        run_all(specs, jobs=plan.section.jobs, stop=stop, note=note, show=show)
    finally:
        view.end()


def _phases(
    plan: Plan, calibration: Calibration, outlook: Outlook, view: ui.LiveTable
) -> Iterator[list[RunSpec]]:
    """Yield the runs of each phase, which the phases before decide about."""
    budgets = plan.section.budgets
    made: set[Path] = set()
    specs = sweep_specs(plan)
    outlook.know("sweep", specs)
    yield specs
    choices = choose_rates(plan)
    for name, choice in choices.items():
        tried = ", ".join(f"{rate:g}" for rate in plan.arms[name].learning_rates)
        if choice.learning_rate is None:
            ui.warn(f"{name}: every learning rate diverged ({tried}); it is left out")
        elif choice.at_edge:
            ui.warn(
                f"{name}: the best learning rate, {choice.learning_rate:g}, is at the edge of "
                f"those that were tried ({tried}): a better one may lie beyond"
            )
        elif len(plan.arms[name].learning_rates) > 1:
            view.note(f"{name}: learning rate {choice.learning_rate:g} of {tried}")
    if "tokens" in budgets:
        specs = token_specs(plan, choices)
        made = {spec.dir for spec in specs}
        outlook.know("tokens", specs)
        yield specs
    if "seconds" in budgets:
        specs, skipped = seconds_specs(plan, choices, calibration.paces())
        for each in skipped:
            ui.warn(f"equal seconds, {each.arm} seed {each.seed}: skipped, {each.reason}")
        specs = [spec for spec in specs if spec.dir not in made]
        outlook.know("seconds", specs)
        yield specs
    trained = {
        str(spec.dir)
        for spec in token_specs(plan, choices)
        if final_loss(spec.history(), spec.steps) is not None
    }
    specs = []
    for spec in downstream_specs(plan, choices):
        before = spec.config.Engine.save_load.ckpt_dir
        if before is None or before in trained:
            specs.append(spec)
        else:
            ui.warn(
                f"downstream, {spec.arm} seed {spec.seed}: skipped, its run of equal tokens was "
                "not trained to its end"
            )
    outlook.know("downstream", specs)
    yield specs


def _calibrate(
    plan: Plan,
    configs: Mapping[str, Config],
    data: str,
    device: Device,
    run: Callable[[list[str]], subprocess.CompletedProcess[str]],
) -> Calibration:
    model = configs[plan.baseline.name].Model
    threads = f", {plan.threads} threads" if device.type == "cpu" else ""
    about: dict[str, Any] = {
        "machine": re.sub(r", [^,]* free$", "", device.describe()) + threads,
        "threads": plan.threads if device.type == "cpu" else None,
        "versions": versions(),
        "commit": source_commit(),
        "model": f"GPT {model.num_layers} layers x {model.hidden_size}, "
        f"{model.num_attention_heads} heads, vocabulary {model.vocab_size:,}",
        "data": data,
    }
    timed = {
        name: with_values(config, {"Global.cpu_threads": plan.threads})
        for name, config in configs.items()
    }
    return calibrate(plan, timed, device=device.name, about=about, run=run)


def source_commit() -> str | None:
    """Return the commit of the running source tree, `+changes` behind it where it has some.

    None for an installed package.
    """
    package = Path(fastffn_cli.__file__).parent

    def git(*words: str) -> subprocess.CompletedProcess[str]:
        command = ["git", "-C", str(package), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    try:
        if git("ls-files", "--error-unmatch", "__init__.py").returncode:
            return None
        commit = git("rev-parse", "--short", "HEAD").stdout.strip()
        changed = git("status", "--porcelain", "--untracked-files=no").stdout.strip()
    except OSError:
        return None
    return f"{commit}+changes" if changed else commit or None


@contextlib.contextmanager
def _hold(out_dir: Path) -> Iterator[None]:
    """Make the folder, and keep other processes out of it.

    Raises `UserError` for a folder of something else, which is left as it is.
    """
    another = "Name another folder: --out DIR"
    if out_dir.exists() and not out_dir.is_dir():
        raise UserError(f"{out_dir} is a file; a comparison is a folder", hint=another)
    if out_dir.is_dir() and not (out_dir / PLAN_FILE).exists():
        strange = sorted(item.name for item in out_dir.iterdir() if item.name != LOCK_FILE)
        if strange:
            raise UserError(
                f"{out_dir} has a {strange[0]} that no comparison wrote; it was not touched",
                hint=another,
            )
    with storage.explain_full_disk(out_dir):
        storage.make_folder(out_dir)
    with (out_dir / LOCK_FILE).open("a", encoding="utf-8") as file:
        try:
            storage.lock(file)
        except BlockingIOError as error:
            raise UserError(
                f"another process compares in {out_dir}; nothing was touched",
                hint="Wait for it, or stop it with Ctrl-C: it saves first",
            ) from error
        yield


def _check_comparable(plan: Plan, configs: Mapping[str, Config]) -> None:
    """Raise `ConfigError` where arms would be judged on other text, or have no whole step."""
    problems = []
    baseline = configs[plan.baseline.name]
    for name, config in configs.items():
        own, wanted = (each.Data.batch_size.micro_batch_size for each in (config, baseline))
        if own != wanted:
            problems.append(
                f"arm {name} evaluates batches of {own}, {plan.baseline.name} of {wanted}: write "
                "one Data.batch_size.micro_batch_size under 'config:'"
            )
        size = config.Data.tokens_per_step
        budgets = {"tokens": float(plan.section.tokens)}
        if len(plan.arms[name].learning_rates) > 1:
            budgets["tokens * sweep.share"] = plan.section.tokens * plan.section.sweep.share
        problems += [
            f"'{key}' is {tokens:,.0f}, and one step of {name} has {size:,}: raise it"
            for key, tokens in budgets.items()
            if tokens < size
        ]
        schedule = config.Schedule
        if schedule.switch != "never" and steps_of_tokens(plan.section.tokens, config) < 2:
            problems.append(f"arm {name} switches, and a run has one step only: raise 'tokens'")
    if problems:
        raise ConfigError(plan.name, list(dict.fromkeys(problems)))


def _look_at_downstream(plan: Plan, config: Config, device: Device) -> None:
    """Check that the downstream text is there, in tokens of the same vocabulary."""
    from fastffn_cli.data.token_files import open_tokens

    section = plan.section.downstream
    assert section is not None
    folder = open_tokens(Path(section.data))
    if folder.vocab_size is not None and folder.vocab_size != config.Model.vocab_size:
        raise DataError(
            f"downstream.data {section.data} has a vocabulary of {folder.vocab_size:,}, the models "
            f"have {config.Model.vocab_size:,}",
            hint="Prepare it with the same tokenizer: "
            f"fastffn prepare FILES --out DIR --tokenizer {config.Data.dataset.input_dir}",
        )
    problems = []
    if section.tokens < config.Data.tokens_per_step:
        problems.append(f"'downstream.tokens' is below one step of {config.Data.tokens_per_step:,}")
    if "tokens" not in plan.section.budgets:
        problems.append("'downstream' goes on from runs of equal tokens: add tokens to 'budgets'")
    if problems:
        raise ConfigError(plan.name, problems)
