"""Seconds of a step of every distinct model of a plan, and what each arm is made of.

All models are timed in one process, interleaved, before the first run; what a run took is then its
steps times these seconds, so that a machine that was slow for a while decides nothing. The file
`calibration.json` is written once. For arms that come to a plan later, only their models are timed,
beside the baseline's, and their ratio to it is what counts.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastffn_cli import ui
from fastffn_cli.comparison.budget import Pace
from fastffn_cli.comparison.results import StepTime
from fastffn_cli.config.dump import dump_config
from fastffn_cli.config.ffn import describe_approximations
from fastffn_cli.config.load import parse_config_file
from fastffn_cli.config.schema import Config
from fastffn_cli.config.schema_training import LearningRate, ScheduleSection
from fastffn_cli.engine import storage
from fastffn_cli.engine.own_process import KILLED, own_process
from fastffn_cli.errors import EXIT_OK, EXIT_OUT_OF_MEMORY, DataError, OutOfMemory

if TYPE_CHECKING:
    from fastffn_cli.comparison.plan import Plan

CALIBRATION_FILE = "calibration.json"
STATEMENT = "from fastffn_cli.comparison.calibration import main; sys.exit(main(*sys.argv[1:]))"


@dataclass(frozen=True)
class Form:
    """A model that is timed: its configuration, and the share of a run that it is trained for."""

    config: Config
    until: float

    @property
    def key(self) -> str:
        """Names everything that the time of a step depends on."""
        config = self.config
        parts = {
            "model": config.Model.model_dump(mode="json"),
            "batch": config.Data.batch_size.model_dump(mode="json"),
            "length": config.Data.dataset.max_seq_len,
            "precision": config.Engine.mix_precision.model_dump(mode="json"),
            "optimizer": config.Optimizer.model_dump(mode="json", exclude={"lr", "recipe"}),
            "until": self.until,
        }
        text = json.dumps(parts, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class ArmFacts:
    """One arm's sizes, in words and numbers, and the keys of its two forms."""

    description: str
    parameters: int
    stage1_flops_per_token: int
    dense_flops_per_token: int
    stage1: str
    dense: str


@dataclass(frozen=True)
class Calibration:
    """What `calibration.json` holds: where it was measured, seconds of each form by its key.

    `data` is what all runs train on; blank in files of earlier versions, which did not say.
    """

    machine: str
    threads: int | None
    versions: dict[str, str]
    commit: str | None
    model: str
    seconds: dict[str, list[float]]
    arms: dict[str, ArmFacts]
    data: str = ""

    def step_time(self, key: str) -> StepTime:
        """Return median and range of a form's rounds."""
        values = self.seconds[key]
        return StepTime(statistics.median(values), min(values), max(values))

    def paces(self) -> dict[str, Pace]:
        """Return the seconds of a step of every arm."""
        return {
            name: Pace(self.step_time(facts.stage1).seconds, self.step_time(facts.dense).seconds)
            for name, facts in self.arms.items()
        }


def forms_of(config: Config) -> tuple[Form, Form]:
    """Return the model of an arm's stage 1, and the dense one."""
    from fastffn_cli.engine.stages import dense_config

    guided = hasattr(config.Model.ffn, "guided_share")
    ends = guided and config.Schedule.switch != "never"
    until = config.Schedule.at if ends else 1.0
    # A schedule belongs to a run; no step of a form depends on it.
    update = {"Schedule": ScheduleSection()}
    lr = config.Optimizer.model_copy(update={"lr": LearningRate()})
    plain = config.model_copy(update={**update, "Optimizer": lr})
    return Form(plain, until), Form(dense_config(plain), 1.0)


def describe_arm(config: Config) -> str:
    """Say in a few words what an arm is: `low_rank (rank 8), switch at 50 %, handover reset`."""
    schedule = config.Schedule
    words = [_describe_model(config)]
    if schedule.switch == "fraction":
        words.append(f"switch at {100 * schedule.at:g} %")
    elif schedule.switch != "never":
        words.append(f"switch by {schedule.switch}, at {100 * schedule.at:g} % at the latest")
    if schedule.switch != "never" and schedule.dense_start:
        words.insert(0, f"dense to {100 * schedule.dense_start:g} %")
    if schedule.switch != "never" and schedule.handover != "lift":
        words.append(f"handover {schedule.handover}")
    return ", ".join(words)


def _describe_model(config: Config) -> str:
    return describe_approximations(config.Model.approximations).removeprefix("FFN ")


def read_calibration(out_dir: Path) -> Calibration | None:
    """Return what was measured for a comparison; None before that.

    Raises `DataError` for a file that is not one.
    """
    file = out_dir / CALIBRATION_FILE
    if not file.exists():
        return None
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        arms = {name: ArmFacts(**facts) for name, facts in values.pop("arms").items()}
        calibration = Calibration(arms=arms, **values)
        calibration.paces()
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"{file} is damaged: {error}", hint="Remove it, and its steps are measured anew"
        ) from error
    return calibration


def calibrate(
    plan: Plan,
    configs: Mapping[str, Config],
    *,
    device: str,
    about: Mapping[str, Any],
    run: Callable[[list[str]], subprocess.CompletedProcess[str]],
) -> Calibration:
    """Measure what is not yet known of the plan's arms, and write it down.

    `configs` are the arms' configurations with their vocabulary, `about` the fields of
    `Calibration` that are the same for all of them; `run` runs a command line to its end.
    Raises `DataError` where the runs so far had other text, `OutOfMemory` where the models together
    find no room.
    """
    from fastffn_cli.engine.model import gpt_config
    from models.gpt import count_parameters, flops_per_token

    forms: dict[str, Form] = {}
    arms = {}
    for name, config in configs.items():
        stage1, dense = forms_of(config)
        forms |= {stage1.key: stage1, dense.key: dense}
        length = config.Data.dataset.max_seq_len
        own, full = gpt_config(stage1.config), gpt_config(dense.config)
        arms[name] = ArmFacts(
            description=describe_arm(config),
            parameters=count_parameters(own),
            stage1_flops_per_token=flops_per_token(own, length),
            dense_flops_per_token=flops_per_token(full, length),
            stage1=stage1.key,
            dense=dense.key,
        )
    before = read_calibration(plan.out_dir)
    if before and before.data not in ("", about["data"]):
        raise DataError(
            f"the comparison in {plan.out_dir} trains on {before.data}\n"
            f"This is another text: {about['data']}",
            hint="Compare in a folder of its own: --out DIR",
        )
    if before and before.machine != about["machine"]:
        ui.warn(
            f"steps were timed on {before.machine}, and those seconds go on to count; this is "
            f"{about['machine']}. To time them here, compare in a folder of its own: --out DIR"
        )
    known = dict(before.seconds) if before else {}
    missing = {key: form for key, form in forms.items() if key not in known}
    if not missing and before and before.arms == arms:
        return before
    if missing:
        reference = arms[plan.baseline.name].stage1
        timed = {reference: forms[reference], **missing}
        ui.say(f"calibration: a step of {len(timed)} models, interleaved")
        measured = _measure_apart(plan, timed, device, run)
        scale = 1.0
        if reference in known:
            scale = statistics.median(known[reference]) / statistics.median(measured[reference])
        known |= {key: [scale * value for value in measured[key]] for key in missing}
    facts = asdict(before) if before else dict(about)
    facts |= {"seconds": known, "arms": {name: asdict(each) for name, each in arms.items()}}
    plan.out_dir.mkdir(parents=True, exist_ok=True)
    text = json.dumps(facts, indent=2) + "\n"
    storage.write_file(plan.out_dir / CALIBRATION_FILE, text)
    calibration = read_calibration(plan.out_dir)
    assert calibration is not None, "it was just written"
    return calibration


def _measure_apart(
    plan: Plan,
    forms: Mapping[str, Form],
    device: str,
    run: Callable[[list[str]], subprocess.CompletedProcess[str]],
) -> dict[str, list[float]]:
    """Time the forms in a process of their own, whose memory is free again for the runs."""
    section = plan.section.calibration
    with tempfile.TemporaryDirectory(prefix="fastffn-compare-") as folder:
        request = Path(folder) / "request.json"
        content = {
            "forms": {key: form.until for key, form in forms.items()},
            "rounds": section.rounds,
            "steps": section.steps,
            "device": device,
        }
        request.write_text(json.dumps(content), encoding="utf-8")
        for key, form in forms.items():
            file = Path(folder) / f"{key}.yaml"
            file.write_text(dump_config(form.config), encoding="utf-8")
        done = run(own_process(STATEMENT, str(request)))
    if done.returncode in (EXIT_OUT_OF_MEMORY, KILLED):
        raise OutOfMemory(
            f"there is no room to time {len(forms)} models in one process",
            hint="Try a smaller Data.batch_size.micro_batch_size, or fewer arms in one plan",
        )
    if done.returncode != 0:
        raise RuntimeError(f"timing the steps failed:\n{done.stderr.strip()}")
    measured: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return measured


def main(request_file: str) -> int:
    """Time what a request asks for and write seconds by key to stdout; 3 without memory."""
    folder = Path(request_file).parent
    request = json.loads(Path(request_file).read_text(encoding="utf-8"))
    configs = {key: parse_config_file(folder / f"{key}.yaml") for key in request["forms"]}
    first = next(iter(configs.values()))

    from fastffn_cli.engine.device import use_configured_device

    device = use_configured_device(first, request["device"])
    from fastffn_cli.engine.model import gpt_config
    from fastffn_cli.engine.timing import WARM_UP_STEPS, Arm, synthetic_batches, time_rounds
    from fastffn_cli.errors import is_out_of_memory

    names = {key: _describe_model(config) for key, config in configs.items()}

    def show(latest: Mapping[str, float]) -> str:
        told = [f"{names[key]} {seconds:.4f}" for key, seconds in latest.items()]
        return ", ".join(told) + " s/step"

    steps = request["steps"]
    try:
        arms = {
            key: Arm(config, gpt_config(config), device, until=request["forms"][key])
            for key, config in configs.items()
        }
        batches = {
            key: synthetic_batches(config, max(steps, WARM_UP_STEPS))
            for key, config in configs.items()
        }
        times = time_rounds(
            arms, batches, steps=steps, rounds=request["rounds"], say=ui.say, show=show
        )
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return EXIT_OUT_OF_MEMORY
    ui.data_json(times)
    return EXIT_OK
