"""One run with a switch: the change of model and optimizer, and what stays as it was."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from fastffn_cli.app import main
from fastffn_cli.config.ffn import FFN_KINDS
from fastffn_cli.config.load import parse_config_file
from fastffn_cli.config.rules_schedule import FROM_DENSE_WEIGHTS, WITHOUT_DENSE_FORM
from fastffn_cli.config.schema_training import ScheduleSection
from fastffn_cli.engine.run import read_metrics, series, steps_of
from fastffn_cli.engine.stages import DENSE_START, STAGE1, STAGE2, Stages
from models.ffn.base import FFN
from models.ffn.registry import KINDS, is_mergeable
from tests.conftest import Workplace, make_workplace
from tests.engine.runs import assert_same_state, exact_metrics, interrupt_at, started

LAST = "checkpoints/step-00000012"
SCHEDULE = """\
Schedule:
  switch: fraction
  at: 0.5
  rewarm_steps: 4
"""
TWELVE = (
    *("-o", "Engine.max_steps=12", "-o", "Engine.save_load.save_steps=2"),
    *("-o", "Engine.save_load.keep_last=0", "-o", "Engine.eval_freq=3"),
)
SANDWICH = (*TWELVE, "-o", "Schedule.dense_start=0.25", "-o", "Schedule.lr_factor=0.5")


def switching(folder: Path, data_dir: Path) -> Workplace:
    place = make_workplace(folder, data_dir)
    with place.config_file.open("a", encoding="utf-8") as file:
        file.write(SCHEDULE)
    return place


@pytest.fixture
def place(tmp_path: Path, data_dir: Path) -> Workplace:
    return switching(tmp_path, data_dir)


def run_to_end(place: Workplace, *options: str) -> Workplace:
    """Train in this process, which spares the start of one."""
    folder = Path.cwd()
    os.chdir(place.dir)
    try:
        with mock.patch("sys.argv", ["fastffn", "pretrain", "-c", "tiny.yaml", *options]):
            main()
    except SystemExit as stop:
        assert not stop.code, "see what it said"
    finally:
        os.chdir(folder)
    return place


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Workplace:
    return run_to_end(switching(tmp_path_factory.mktemp("straight"), data_dir), *TWELVE)


@pytest.fixture(scope="module")
def sandwich(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Workplace:
    return run_to_end(switching(tmp_path_factory.mktemp("sandwich"), data_dir), *SANDWICH)


def switches(place: Workplace) -> list[dict[str, Any]]:
    return [each for each in read_metrics(place.run_dir) if each["event"] == "switch"]


def record_of(place: Workplace, step: int) -> dict[str, Any]:
    file = place.run_dir / f"checkpoints/step-{step:08d}/trainer.json"
    return json.loads(file.read_text())


def cut_back(place: Workplace, folder: Path, step: int, data_dir: Path) -> Workplace:
    """A copy of the run as a kill behind `step` leaves it."""
    shutil.copytree(place.dir, folder, dirs_exist_ok=True)
    copied = make_workplace(folder, data_dir)
    shutil.copy(place.config_file, copied.config_file)
    checkpoints = copied.run_dir / "checkpoints"
    for later in checkpoints.glob("step-*"):
        if later.name > f"step-{step:08d}":
            shutil.rmtree(later)
    (checkpoints / "latest").write_text(f"step-{step:08d}\n")
    return copied


@pytest.mark.slow
def test_the_run_goes_on_dense_where_the_schedule_says(straight: Workplace) -> None:
    (switch,) = switches(straight)
    assert (switch["step"], switch["stage"]) == (6, STAGE2)
    kinds = [switch[side]["ffn"]["kind"] for side in ("before", "after")]
    assert kinds == ["low_rank", "dense"]
    assert switch["logit_difference"] < 1e-5
    assert abs(switch["loss_difference"]) < 1e-5


@pytest.mark.slow
def test_a_checkpoint_holds_the_model_of_its_stage(straight: Workplace) -> None:
    assert record_of(straight, 6)["ffn"]["kind"] == "low_rank"
    assert record_of(straight, 8)["ffn"] == {"kind": "dense"}
    shown = straight.run_fastffn("inspect", f"runs/tiny/{LAST}", "--json")
    assert shown.returncode == 0, shown.stderr
    evaluated = straight.run_fastffn("eval", "runs/tiny", "--json")
    assert evaluated.returncode == 0, evaluated.stderr
    assert json.loads(evaluated.stdout)["step"] == 12


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 6, 8])
def test_a_run_resumed_anywhere_ends_with_the_same_bits(
    straight: Workplace, tmp_path: Path, data_dir: Path, step: int
) -> None:
    copied = cut_back(straight, tmp_path, step, data_dir)
    run_to_end(copied, *TWELVE, "--resume")
    assert_same_state(straight.run_dir / LAST, copied.run_dir / LAST)
    assert exact_metrics(straight.run_dir) == exact_metrics(copied.run_dir)


@pytest.mark.slow
def test_a_run_stopped_at_the_switch_switches_when_it_goes_on(
    straight: Workplace, place: Workplace
) -> None:
    with started("pretrain", "-c", "tiny.yaml", *TWELVE, cwd=place.dir) as process:
        code, _ = interrupt_at(process, "step-00000006", signal.SIGTERM)
    assert code == 143
    run_to_end(place, *TWELVE, "--resume")
    assert_same_state(straight.run_dir / LAST, place.run_dir / LAST)


def test_inspect_tells_the_switch(straight: Workplace, capfd: pytest.CaptureFixture[str]) -> None:
    with (
        pytest.raises(SystemExit) as ended,
        mock.patch("sys.argv", ["fastffn", "inspect", str(straight.run_dir)]),
    ):
        main()
    assert not ended.value.code
    assert "step 6: FFN dense (stage 1 ends at step 6)" in flat(capfd.readouterr().out)


@pytest.mark.slow
def test_a_stage_1_checkpoint_converts_to_one_that_opens(
    straight: Workplace, tmp_path: Path
) -> None:
    out = tmp_path / "dense"
    stage1 = straight.run_dir / "checkpoints/step-00000004"
    done = straight.run_fastffn("convert", stage1, "--out", out)
    assert done.returncode == 0, done.stderr
    shown = straight.run_fastffn("eval", out, "--json")
    assert shown.returncode == 0, shown.stderr
    assert parse_config_file(out / "config.yaml").Schedule == ScheduleSection()


def test_the_run_card_tells_the_stages_that_are_left(
    straight: Workplace, capfd: pytest.CaptureFixture[str]
) -> None:
    run_to_end(straight, *TWELVE, "--dry-run")
    assert "stage 1 to step 6, then dense" in flat(capfd.readouterr().out)
    run_to_end(straight, *TWELVE, "--dry-run", "--resume")
    assert "dense since step 6: the switch is over" in flat(capfd.readouterr().out)


def flat(text: str) -> str:
    """A card's text without its frame and line breaks."""
    return " ".join(text.replace("│", " ").split())


def test_a_run_without_a_step_for_each_stage_is_refused(workplace: Workplace, fastffn: Any) -> None:
    with workplace.config_file.open("a", encoding="utf-8") as file:
        file.write(SCHEDULE)
    result = fastffn("pretrain", "-c", "tiny.yaml", "-o", "Engine.max_steps=1")
    assert result.code == 2
    assert "1 steps are too few for 2 stages" in result.err


@pytest.mark.parametrize("max_steps", [2, 3, 7, 1000])
@pytest.mark.parametrize("dense_start", [0.0, 0.3])
@pytest.mark.parametrize("at", [0.001, 0.31, 0.5, 0.999])
def test_every_stage_has_a_step(max_steps: int, dense_start: float, at: float) -> None:
    schedule = ScheduleSection(switch="fraction", at=at, dense_start=dense_start)
    if max_steps >= schedule.fewest_steps():
        begin, end = schedule.dense_start_steps(max_steps), schedule.latest_switch(max_steps)
        assert begin < end < max_steps


@pytest.mark.slow
def test_the_learning_rate_is_one_curve_over_both_stages(
    straight: Workplace, tmp_path: Path, data_dir: Path
) -> None:
    plain = run_to_end(make_workplace(tmp_path, data_dir), *TWELVE)
    rates = [
        series(read_metrics(each.run_dir), "train", "learning_rate") for each in (straight, plain)
    ]
    assert rates[0] == rates[1]


@pytest.mark.slow
def test_the_sandwich_trains_dense_then_factors_then_dense(sandwich: Workplace) -> None:
    told = [
        (each["step"], each["before"]["ffn"]["kind"], each["after"]["ffn"]["kind"])
        for each in switches(sandwich)
    ]
    assert told == [(3, "dense", "low_rank"), (6, "low_rank", "dense")]
    assert record_of(sandwich, 2)["ffn"]["kind"] == "dense"
    assert record_of(sandwich, 4)["ffn"]["kind"] == "low_rank"
    assert record_of(sandwich, 8)["ffn"]["kind"] == "dense"


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 4, 8])
def test_a_sandwich_resumed_in_any_layer_ends_with_the_same_bits(
    sandwich: Workplace, tmp_path: Path, data_dir: Path, step: int
) -> None:
    copied = cut_back(sandwich, tmp_path, step, data_dir)
    run_to_end(copied, *SANDWICH, "--resume")
    assert_same_state(sandwich.run_dir / LAST, copied.run_dir / LAST)


@pytest.mark.slow
def test_a_finished_run_can_be_made_longer_in_its_last_stage(
    straight: Workplace, tmp_path: Path, data_dir: Path
) -> None:
    copied = cut_back(straight, tmp_path, 12, data_dir)
    run_to_end(copied, *TWELVE, "-o", "Engine.max_steps=14", "--resume")
    assert steps_of(read_metrics(copied.run_dir), "switch") == [6]
    assert record_of(copied, 14)["stages"]["stage"] == STAGE2


@pytest.mark.slow
def test_other_feed_forwards_are_refused_on_resume_though_the_checkpoint_is_dense(
    straight: Workplace,
) -> None:
    done = straight.run_fastffn(
        "pretrain", "-c", "tiny.yaml", *TWELVE, "-o", "Model.ffn.rank=2", "--resume"
    )
    assert done.returncode == 2
    assert "Model.ffn.rank was 4, is 2" in done.stderr


@pytest.mark.slow
def test_a_merge_that_is_another_function_ends_the_run_and_keeps_stage_1(
    workplace: Workplace, fastffn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with workplace.config_file.open("a", encoding="utf-8") as file:
        file.write(SCHEDULE)
    monkeypatch.setattr("fastffn_cli.engine.stage_change.TOLERANCE", -1.0)
    result = fastffn("pretrain", "-c", "tiny.yaml", *TWELVE)
    assert result.code == 5
    assert (workplace.run_dir / "checkpoints/latest").read_text().strip() == "step-00000006"
    assert record_of(workplace, 6)["ffn"]["kind"] == "low_rank"


@pytest.mark.slow
@pytest.mark.parametrize("handover", ["reset", "rewarm"])
def test_every_handover_goes_on(place: Workplace, handover: str) -> None:
    run_to_end(place, *TWELVE, "-o", f"Schedule.handover={handover}")
    losses = dict(series(read_metrics(place.run_dir), "train", "loss"))
    assert losses[12] < losses[6]


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["narrow", "thin", "monarch", "block_dense", "block_diagonal", "dense"]
)
def test_a_sandwich_of_every_kind_resumes_with_the_same_bits(
    place: Workplace, tmp_path_factory: pytest.TempPathFactory, data_dir: Path, kind: str
) -> None:
    ranks = ("-o", "Model.attention_rank=8", "-o", "Model.embedding_rank=8")
    options = (*SANDWICH, *ranks, "-o", f"Model.ffn={{kind: {kind}}}")
    run_to_end(place, *options)
    copied = cut_back(place, tmp_path_factory.mktemp("cut"), 4, data_dir)
    run_to_end(copied, *options, "--resume")
    assert_same_state(place.run_dir / LAST, copied.run_dir / LAST)


def test_the_rules_know_which_kinds_can_be_switched() -> None:
    for name, kind in FFN_KINDS.items():
        layer = KINDS[name]
        assert (kind not in WITHOUT_DENSE_FORM) == is_mergeable({"kind": name})
        factored = (
            name != "dense" and layer.approximate_pair.__func__ is not FFN.approximate_pair.__func__
        )
        assert (kind in FROM_DENSE_WEIGHTS) == factored


def test_learning_rate_factor_goes_straight_from_stage_to_stage() -> None:
    schedule = ScheduleSection(switch="fraction", lr_factor=0.5, rewarm_steps=5)
    stages = Stages(STAGE2, changed_at=100)
    factors = [stages.learning_rate_factor(step, schedule) for step in range(101, 108)]
    assert np.all(np.diff(factors) <= 0)
    assert factors[0] <= 1.0
    assert factors[-1] == 0.5
    assert Stages(STAGE1).learning_rate_factor(1, schedule) == 1.0
    assert Stages(DENSE_START).learning_rate_factor(1, schedule) == 0.5


def test_stages_survive_json() -> None:
    stages = Stages(STAGE2, changed_at=7, start_rates={"a": 0.25}, criterion={"count": 2})
    record = json.loads(json.dumps(vars(stages)))
    assert Stages.resume({**record, "planned": {}}) == stages
    assert Stages.resume(None) == Stages(STAGE1)
