"""A plan's YAML: arms with whole configurations, and every mistake told with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastffn_cli.comparison.plan import PLAN_FILE, Plan, load_plan
from fastffn_cli.comparison.plan_schema import key_table
from fastffn_cli.config.shipped import shipped_names, shipped_plans
from fastffn_cli.errors import ConfigError
from tests.comparison.plans import TINY_PLAN, write_plan
from tests.conftest import ROOT_DIR, Workplace

EXPERIMENT_DIR = ROOT_DIR / "benchmarks" / "experiment"


@pytest.fixture(autouse=True)
def _in_workplace(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace.dir)


def problems_of(workplace: Workplace, text: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_plan(str(write_plan(workplace, text)), overrides)
    return caught.value.problems


def test_arms_are_the_base_with_their_overrides(workplace: Workplace) -> None:
    plan = load_plan(str(write_plan(workplace)))
    dense, low_rank = plan.arms["dense"].config, plan.arms["low_rank"].config
    assert (dense.Model.ffn.kind, dense.Schedule.switch) == ("dense", "never")
    assert low_rank.Model.ffn.model_dump()["rank"] == 2
    assert (low_rank.Schedule.switch, low_rank.Schedule.at) == ("fraction", 0.5)
    assert dense.Model.hidden_size == low_rank.Model.hidden_size == 32
    assert plan.baseline.name == "dense"
    assert plan.out_dir == Path("cmp")


def test_dotted_and_nested_forms_of_an_arm_are_the_same(workplace: Workplace) -> None:
    nested = TINY_PLAN.replace(
        "    Model.ffn: {kind: low_rank, rank: 2}\n",
        "    Model:\n      ffn: {kind: low_rank}\n    Model.ffn.rank: 2\n",
    )
    first, second = (
        load_plan(str(write_plan(workplace, text))).arms["low_rank"].config
        for text in (TINY_PLAN, nested)
    )
    assert first == second


def test_learning_rates_are_the_arms_then_the_plans_then_the_configurations(
    workplace: Workplace,
) -> None:
    text = TINY_PLAN + "    learning_rates: [3e-3, 1e-2]\n"
    plan = load_plan(str(write_plan(workplace, text)))
    assert plan.arms["low_rank"].learning_rates == (3e-3, 1e-2)
    assert plan.arms["dense"].learning_rates == (1e-3,)
    without = load_plan(
        str(write_plan(workplace, TINY_PLAN.replace("learning_rates: [1e-3]\n", ""))),
        ["Optimizer.lr.min_lr=5e-5"],
    )
    assert without.arms["dense"].learning_rates == (without.baseline.config.Optimizer.lr.max_lr,)


def test_overrides_set_keys_of_the_plan_and_of_the_configuration(workplace: Workplace) -> None:
    plan = load_plan(
        str(write_plan(workplace)),
        ["seeds=[5]", "Model.num_layers=1", "arms.low_rank.Model.ffn.rank=3"],
        device="cpu",
    )
    assert plan.section.seeds == (5,)
    assert {arm.config.Model.num_layers for arm in plan.arms.values()} == {1}
    assert plan.arms["low_rank"].config.Model.ffn.model_dump()["rank"] == 3
    assert {arm.config.Global.device for arm in plan.arms.values()} == {"cpu"}


def test_what_is_kept_reads_back_as_the_same_plan(workplace: Workplace) -> None:
    plan = load_plan(
        str(write_plan(workplace, TINY_PLAN + "    learning_rates: [3e-3]\n")), ["tokens=4e9"]
    )
    kept_dir = workplace.dir / "kept"
    kept_dir.mkdir()
    for name, text in plan.files.items():
        (kept_dir / name).write_text(text, encoding="utf-8")
    again = load_plan(str(kept_dir / PLAN_FILE), out_dir=plan.out_dir)
    assert again.section.model_dump(exclude={"base", "name", "out"}) == plan.section.model_dump(
        exclude={"base", "name", "out"}
    )
    assert (again.name, again.out_dir) == (plan.name, plan.out_dir)
    assert _configs(again) == _configs(plan)
    assert again.section.tokens == 4_000_000_000


def _configs(plan: Plan) -> dict[str, object]:
    return {name: (arm.config, arm.learning_rates) for name, arm in plan.arms.items()}


MISTAKES = (
    (
        "baseline: dense",
        "baseline: dens",
        "'baseline' names the arm 'dens', which is not there. Did you mean 'dense'?",
    ),
    (
        "tokens: 1536",
        "tokens: '1536'",
        "'tokens' must be an integer above 0, not '1536' (str). Remove the quotes",
    ),
    (
        "tokens: 1536\n",
        "",
        "'tokens' is required",
    ),
    (
        "seeds: [1, 2]",
        "seeds: [1, 1]",
        "'seeds' has 1 twice",
    ),
    (
        "seeds: [1, 2]",
        "seeds: []",
        "'seeds' is an empty list",
    ),
    (
        "evaluations:",
        "evaluation:",
        "unknown key 'evaluation'. Did you mean 'evaluations'?",
    ),
    (
        "evaluations: 3",
        "Model: {}",
        "'Model' is a section of the configuration: write it under 'config:'",
    ),
    (
        "evaluations: 3",
        "budgets: [token]",
        "'budgets' must be a list of 'tokens' and 'seconds', not [token]",
    ),
    (
        "evaluations: 3",
        "sweep: {seeds: 3}",
        "'sweep.seeds' must be at most 2",
    ),
    (
        "[1e-3]",
        "[0]",
        "'learning_rates' must be a list of numbers above 0",
    ),
    (
        "base: tiny.yaml",
        "base: tinny.yaml",
        "'base': there is no file 'tinny.yaml'",
    ),
    (
        "base: tiny.yaml",
        "base: demo-dens",
        "Did you mean 'demo-dense'?",
    ),
    (
        "  dense: {}",
        "  dense: 3",
        "'arms.dense' must be a block of keys",
    ),
    (
        "  dense: {}",
        "  no/ne: {}\n  dense: {}",
        "'no/ne' cannot be the name of an arm",
    ),
    (
        "kind: low_rank,",
        "kind: low_rnk,",
        "Did you mean 'low_rank'?",
    ),
    (
        "    Schedule:",
        "    Engine.max_steps: 3\n    Schedule:",
        "'arms.low_rank.Engine.max_steps' is decided by the plan: remove it",
    ),
    (
        "    Schedule:",
        "    Data.dataset.max_seq_len: 8\n    Schedule:",
        "must be the same for all arms: write it under 'config:'",
    ),
    (
        "    Schedule:",
        "    learning_rates: [no]\n    Schedule:",
        "'arms.low_rank.learning_rates' must be a list of numbers",
    ),
)


@pytest.mark.parametrize(("old", "new", "said"), MISTAKES)
def test_a_mistake_is_told_with_its_line(
    workplace: Workplace, old: str, new: str, said: str
) -> None:
    assert old in TINY_PLAN
    told = [line for line in problems_of(workplace, TINY_PLAN.replace(old, new, 1)) if said in line]
    assert len(told) == 1
    assert told[0].startswith("plan.yaml:")


def test_all_problems_come_at_once_in_order(workplace: Workplace) -> None:
    text = TINY_PLAN.replace("tokens: 1536", "tokens: 0").replace("rank: 2", "rnk: 2")
    told = problems_of(workplace, text.replace("seeds: [1, 2]", "seeds: [-1]"), "jobs=0")
    places = [line.split("  ")[0] for line in told]
    assert places == ["plan.yaml:4", "plan.yaml:5", "-o jobs=0", "plan.yaml:17"]


def test_a_problem_of_the_base_is_told_once(workplace: Workplace) -> None:
    text = workplace.config_file.read_text(encoding="utf-8")
    workplace.config_file.write_text(text.replace("num_layers: 2", "num_layers: -2"), "utf-8")
    told = problems_of(workplace, TINY_PLAN)
    assert len(told) == 1
    assert told[0].startswith("tiny.yaml:14  'Model.num_layers'")


def test_shipped_plans_are_valid_and_no_configurations(tmp_path: Path) -> None:
    assert "compare-demo" in shipped_plans()
    assert not set(shipped_plans()) & set(shipped_names())
    for name in shipped_plans():
        plan = load_plan(name, [f"Data.dataset.input_dir={tmp_path}"])
        assert plan.name == name
        assert len(plan.arms) >= 2


@pytest.mark.parametrize(
    "path",
    [path for path in sorted(EXPERIMENT_DIR.glob("*.yaml")) if path.name != "base.yaml"],
    ids=lambda path: path.stem,
)
def test_plans_of_the_published_results_are_valid(path: Path) -> None:
    plan = load_plan(str(path))
    assert plan.baseline.name == "dense"
    assert len(plan.section.seeds) >= 3


def test_the_page_explains_every_key() -> None:
    page = (ROOT_DIR / "docs" / "compare.md").read_text(encoding="utf-8")
    assert key_table() in page
