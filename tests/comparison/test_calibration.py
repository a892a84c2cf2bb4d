"""Step times: what is timed, what is timed again, and what the file says."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastffn_cli.comparison.calibration import (
    CALIBRATION_FILE,
    Calibration,
    calibrate,
    describe_arm,
    forms_of,
    read_calibration,
)
from fastffn_cli.comparison.plan import Plan, load_plan
from fastffn_cli.comparison.runs import with_values
from fastffn_cli.errors import DataError, OutOfMemory
from tests.comparison.plans import TINY_PLAN, write_plan
from tests.conftest import Workplace

NARROW = "  narrow:\n    Model.ffn: {kind: narrow, width: 4}\n"
ABOUT = {
    "machine": "cpu",
    "threads": 1,
    "versions": {},
    "commit": None,
    "model": "GPT",
    "data": "7 tokens",
}


@pytest.fixture
def load(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Plan]:
    monkeypatch.chdir(workplace.dir)
    return lambda text=TINY_PLAN: load_plan(str(write_plan(workplace, text)))


class Clock:
    """Answers in the place of the process that times: the given seconds, by kind."""

    def __init__(self, **seconds: list[float]) -> None:
        self.seconds, self.timed = seconds, [""]

    def __call__(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        folder = Path(command[-1]).parent
        kinds = {}
        for key in json.loads((folder / "request.json").read_text())["forms"]:
            text = (folder / f"{key}.yaml").read_text(encoding="utf-8")
            kinds[key] = text.split("kind: ")[1].split()[0]
        self.timed = sorted(kinds.values())
        answer = {key: self.seconds[kind] for key, kind in kinds.items()}
        return subprocess.CompletedProcess(command, 0, json.dumps(answer), "")


def measure(plan: Plan, run: Any, **about: Any) -> Calibration:
    configs = {
        name: with_values(arm.config, {"Model.vocab_size": 257}) for name, arm in plan.arms.items()
    }
    return calibrate(plan, configs, device="cpu", about=ABOUT | about, run=run)


def test_every_distinct_model_is_timed_once(load: Callable[..., Plan]) -> None:
    clock = Clock(dense=[1.0, 3.0, 2.0], low_rank=[0.5, 0.7, 0.6])
    calibration = measure(load(), clock)
    assert clock.timed == ["dense", "low_rank"]
    facts = calibration.arms["low_rank"]
    assert facts.dense == calibration.arms["dense"].stage1 == calibration.arms["dense"].dense
    assert calibration.step_time(facts.dense).seconds == 2.0
    assert (calibration.step_time(facts.stage1).low, calibration.step_time(facts.stage1).high) == (
        0.5,
        0.7,
    )
    assert facts.description == "low_rank (rank 2), switch at 50 %"
    assert facts.parameters < calibration.arms["dense"].parameters
    assert facts.stage1_flops_per_token < facts.dense_flops_per_token


def test_what_is_known_is_not_timed_again(load: Callable[..., Plan]) -> None:
    plan = load()
    first = measure(plan, Clock(dense=[1.0], low_rank=[0.5]))
    assert measure(plan, None) == first == read_calibration(plan.out_dir)


def test_seconds_of_another_machine_are_kept_with_a_warning(
    load: Callable[..., Plan], capsys: pytest.CaptureFixture[str]
) -> None:
    plan = load()
    first = measure(plan, Clock(dense=[1.0], low_rank=[0.5]))
    assert "timed on" not in capsys.readouterr().err
    assert measure(plan, None, machine="gpu:0") == first
    assert "timed on cpu" in " ".join(capsys.readouterr().err.split())


def test_runs_on_other_text_are_refused(load: Callable[..., Plan]) -> None:
    plan = load()
    first = measure(plan, Clock(dense=[1.0], low_rank=[0.5]))
    with pytest.raises(DataError, match="trains on 7 tokens\nThis is another text: 8 tokens"):
        measure(plan, None, data="8 tokens")
    assert read_calibration(plan.out_dir) == first


def test_a_file_that_does_not_name_its_text_goes_on(load: Callable[..., Plan]) -> None:
    plan = load()
    measure(plan, Clock(dense=[1.0], low_rank=[0.5]))
    file = plan.out_dir / CALIBRATION_FILE
    older = json.loads(file.read_text(encoding="utf-8"))
    del older["data"]
    file.write_text(json.dumps(older), encoding="utf-8")
    assert measure(plan, None).data == ""


def test_a_later_arm_is_timed_beside_the_baseline_and_counts_by_their_ratio(
    load: Callable[..., Plan],
) -> None:
    measure(load(), Clock(dense=[1.0], low_rank=[0.5]))
    # The machine is twice as slow now.
    clock = Clock(dense=[2.0], narrow=[1.6])
    calibration = measure(load(TINY_PLAN + NARROW), clock)
    assert clock.timed == ["dense", "narrow"]
    paces = calibration.paces()
    assert (paces["dense"].dense, paces["low_rank"].stage1) == (1.0, 0.5)
    assert paces["narrow"].stage1 == pytest.approx(0.8)


def test_learning_rate_and_schedule_make_no_other_model_and_the_batch_does(
    load: Callable[..., Plan],
) -> None:
    config = load().arms["low_rank"].config
    same = with_values(config, {"Optimizer.lr.max_lr": 0.5, "Schedule.at": 0.7, "Global.seed": 9})
    assert [form.key for form in forms_of(same)] == [form.key for form in forms_of(config)]
    other = with_values(config, {"Data.batch_size.micro_batch_size": 8})
    assert {form.key for form in forms_of(other)}.isdisjoint(form.key for form in forms_of(config))


def test_a_guided_arm_is_timed_over_its_stage_1(load: Callable[..., Plan]) -> None:
    text = TINY_PLAN.replace("kind: low_rank, rank: 2", "kind: guided, inner: low_rank, rank: 2")
    stage1, dense = forms_of(load(text).arms["low_rank"].config)
    assert (stage1.until, dense.until) == (0.5, 1.0)


def test_arms_are_described_with_their_schedule(load: Callable[..., Plan]) -> None:
    config = load().arms["low_rank"].config
    online = with_values(config, {"Schedule.switch": "slope", "Schedule.dense_start": 0.1})
    assert describe_arm(online) == (
        "dense to 10 %, low_rank (rank 2), switch by slope, at 50 % at the latest"
    )
    reset = with_values(config, {"Schedule.handover": "reset"})
    assert describe_arm(reset) == "low_rank (rank 2), switch at 50 %, handover reset"


def test_no_room_for_all_models_is_advice(load: Callable[..., Plan]) -> None:
    with pytest.raises(OutOfMemory, match="2 models"):
        measure(load(), lambda command: subprocess.CompletedProcess(command, -9, "", ""))


def test_a_damaged_file_is_named(load: Callable[..., Plan]) -> None:
    plan = load()
    plan.out_dir.mkdir()
    (plan.out_dir / CALIBRATION_FILE).write_text('{"arms": {}', encoding="utf-8")
    with pytest.raises(DataError, match=CALIBRATION_FILE):
        read_calibration(plan.out_dir)
