"""Which runs a plan asks for, and which learning rate a sweep chooses."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from fastffn_cli.comparison.budget import Pace
from fastffn_cli.comparison.children import RUN_FILE, check_unchanged
from fastffn_cli.comparison.plan import Plan, load_plan
from fastffn_cli.comparison.runs import (
    Choice,
    RunSpec,
    choose,
    choose_rates,
    downstream_specs,
    seconds_specs,
    sweep_specs,
    token_specs,
)
from fastffn_cli.config.dump import dump_config
from fastffn_cli.errors import UserError
from tests.comparison.plans import TINY_PLAN, write_plan
from tests.conftest import Workplace

RATES = ("learning_rates: [1e-3]", "learning_rates: [1e-3, 3e-3, 1e-2]")
PACES = {"dense": Pace(1.0, 1.0), "low_rank": Pace(0.5, 1.0)}


@pytest.fixture
def plan(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.chdir(workplace.dir)
    text = TINY_PLAN.replace(*RATES).replace("tokens: 1536", "tokens: 25600")
    return load_plan(str(write_plan(workplace, text)))


def pretend(spec: RunSpec, loss: float, *, event: str = "end") -> None:
    """Leave what a run of the program leaves behind."""
    (spec.dir / "checkpoints").mkdir(parents=True)
    (spec.dir / RUN_FILE).write_text(dump_config(spec.config), encoding="utf-8")
    records = [
        {"event": "start", "step": 0, "time": 1.0},
        {"event": "eval", "step": spec.steps, "loss": loss, "time": 2.0},
        {"event": event, "step": spec.steps, "time": 3.0},
    ]
    text = "".join(json.dumps(record) + "\n" for record in records)
    (spec.dir / "metrics.jsonl").write_text(text, encoding="utf-8")


def test_the_least_loss_wins_and_of_two_the_smaller_rate() -> None:
    assert choose({1e-3: 3.0, 3e-3: 2.0, 1e-2: 2.5}) == Choice(3e-3)
    assert choose({1e-2: 2.0, 1e-3: 3.0, 3e-3: 2.0}) == Choice(3e-3)
    assert choose({3e-3: 2.0}) == Choice(3e-3)


def test_a_best_rate_with_nothing_beyond_it_is_at_the_edge() -> None:
    assert choose({1e-3: 1.0, 3e-3: 2.0, 1e-2: 2.5}) == Choice(1e-3, at_edge=True)
    assert choose({1e-3: 3.0, 3e-3: 2.0, 1e-2: 1.5}) == Choice(1e-2, at_edge=True)


def test_diverged_rates_are_out() -> None:
    assert choose({1e-3: 3.0, 3e-3: 2.0, 1e-2: math.inf}) == Choice(3e-3)
    assert choose({1e-3: math.inf, 3e-3: math.inf}) == Choice(None)


def test_every_arm_sweeps_a_share_of_the_budget_with_a_schedule_of_its_own(plan: Plan) -> None:
    specs = sweep_specs(plan)
    assert [(spec.arm, spec.learning_rate) for spec in specs] == [
        (arm, rate) for arm in ("dense", "low_rank") for rate in (1e-3, 3e-3, 1e-2)
    ]
    # A quarter of 100 steps of 256 tokens; three evaluations, the last behind the last step.
    assert {spec.steps for spec in specs} == {25}
    config = specs[1].config
    assert (config.Engine.max_steps, config.Engine.eval_freq) == (25, 9)
    assert config.Optimizer.lr.decay_steps is None
    # The base's ratio of min_lr to max_lr is a tenth.
    assert config.Optimizer.lr.min_lr == pytest.approx(3e-4)
    assert config.Global.seed == 1


def test_the_sweep_decides_when_all_its_runs_are_over(plan: Plan) -> None:
    specs = sweep_specs(plan)
    for spec, loss in zip(specs, (3.0, 2.0, 2.5, 3.0, 2.9), strict=False):
        pretend(spec, loss)
    assert choose_rates(plan) == {"dense": Choice(3e-3)}
    pretend(specs[5], 0.1, event="diverged")
    assert choose_rates(plan)["low_rank"] == Choice(3e-3)


def test_all_arms_of_a_seed_come_before_the_next_seed(plan: Plan) -> None:
    specs = token_specs(plan, {"dense": Choice(1e-3), "low_rank": Choice(3e-3)})
    assert [(spec.seed, spec.arm) for spec in specs] == [
        (1, "dense"), (1, "low_rank"), (2, "dense"), (2, "low_rank"),
    ]  # fmt: skip
    assert {spec.steps for spec in specs} == {100}
    assert len({spec.dir for spec in specs}) == 4


def test_an_arm_without_a_rate_is_left_out(plan: Plan) -> None:
    specs = token_specs(plan, {"dense": Choice(1e-3), "low_rank": Choice(None)})
    assert {spec.arm for spec in specs} == {"dense"}


def test_equal_seconds_give_the_faster_arm_more_steps(plan: Plan) -> None:
    choices = {"dense": Choice(1e-3), "low_rank": Choice(3e-3)}
    specs, skipped = seconds_specs(plan, choices, PACES)
    assert skipped == []
    by_arm = {spec.arm: spec for spec in specs if spec.seed == 1}
    # 100 s at 0.75 s a step; the baseline's run is the one of equal tokens.
    assert by_arm["low_rank"].steps == 133
    assert by_arm["low_rank"].dir == Path("cmp/runs/seconds/low_rank/seed-1")
    assert by_arm["dense"].dir == Path("cmp/runs/tokens/dense/seed-1")
    assert by_arm["dense"].budget == "seconds"


def test_an_online_switch_that_was_not_seen_is_skipped_with_a_reason(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace.dir)
    text = TINY_PLAN.replace("switch: fraction", "switch: slope")
    plan = load_plan(str(write_plan(workplace, text)))
    specs, skipped = seconds_specs(plan, choose_rates(plan), PACES)
    assert {spec.arm for spec in specs} == {"dense"}
    assert [(each.arm, each.seed) for each in skipped] == [("low_rank", 1), ("low_rank", 2)]
    assert "no run of equal tokens" in skipped[0].reason


def test_downstream_begins_with_each_arms_weights_and_with_random_ones(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch, data_dir: Path
) -> None:
    monkeypatch.chdir(workplace.dir)
    below = f"downstream: {{data: {data_dir}, tokens: 512, max_lr: 1e-4}}\n"
    plan = load_plan(str(write_plan(workplace, TINY_PLAN + below)))
    specs = downstream_specs(plan, choose_rates(plan))
    first = {spec.arm: spec for spec in specs if spec.seed == 1}
    assert list(first) == ["none", "dense", "low_rank"]
    starts = [spec.config.Engine.save_load.ckpt_dir for spec in first.values()]
    assert starts == [None, "cmp/runs/tokens/dense/seed-1", "cmp/runs/tokens/low_rank/seed-1"]
    # What an arm ends with is dense behind its switch.
    assert all(spec.is_dense for spec in specs)
    assert {spec.steps for spec in specs} == {2}
    assert {spec.config.Optimizer.lr.max_lr for spec in specs} == {1e-4}


def test_the_threads_are_divided_among_the_jobs(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastffn_cli.comparison.plan.usable_cores", lambda: 8)
    assert plan.threads == 8
    section = plan.section.model_copy(update={"jobs": 3})
    divided = Plan(**{**vars(plan), "section": section})
    assert divided.threads == 2
    assert sweep_specs(divided)[0].config.Global.cpu_threads == 2


def test_a_run_begun_with_other_settings_is_refused_and_a_new_one_is_not(
    plan: Plan, workplace: Workplace
) -> None:
    choices = {"dense": Choice(1e-3), "low_rank": Choice(3e-3)}
    pretend(token_specs(plan, choices)[0], 3.0)
    check_unchanged(token_specs(plan, choices))
    other = load_plan("plan.yaml", ["tokens=51200", "seeds=[1, 2, 3]"])
    with pytest.raises(
        UserError, match=r"tokens/dense/seed-1: .*max_steps was 100, is 200"
    ) as told:
        check_unchanged(token_specs(other, choices))
    assert "--out" in (told.value.hint or "")
    check_unchanged(token_specs(load_plan("plan.yaml", ["seeds=[1, 2, 3]"], device="cpu"), choices))
