"""`fastffn compare` with real runs: from a plan to a report, stopped, continued, changed."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fastffn_cli.comparison.report_document import escape_markdown
from tests.comparison.plans import TINY_PLAN, write_plan
from tests.conftest import Workplace, make_workplace, program, program_env

pytestmark = pytest.mark.slow
Compare = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Workplace:
    return make_workplace(tmp_path_factory.mktemp("compared"), data_dir)


@pytest.fixture(scope="module")
def finished(place: Workplace) -> subprocess.CompletedProcess[str]:
    """A whole comparison: two arms, two seeds, both budgets. Tests only add to it."""
    done = place.run_fastffn("compare", "-c", write_plan(place), "--json", "--jobs", "2")
    assert done.returncode == 0, done.stderr
    return done


def test_compares_two_arms_at_equal_tokens_and_equal_seconds(
    place: Workplace, finished: subprocess.CompletedProcess[str]
) -> None:
    value = json.loads(finished.stdout)
    assert value["sentence"] in finished.stderr
    assert value["baseline"] == "dense"
    dense, low_rank = value["arms"]
    assert low_rank["description"] == "low_rank (rank 2), switch at 50 %"
    assert low_rank["stage1_flops_per_token"] < dense["stage1_flops_per_token"]
    runs = [run for arm in value["arms"] for run in arm["runs"]]
    assert sorted((run["budget"], run["arm"], run["seed"]) for run in runs) == [
        (budget, arm, seed)
        for budget in ("seconds", "tokens")
        for arm in ("dense", "low_rank")
        for seed in (1, 2)
    ]
    assert all(run["problem"] is None and run["final_loss"] > 0 for run in runs)
    assert {run["switched_at"] for run in low_rank["runs"] if run["budget"] == "tokens"} == {3}
    step_s = dense["stage1_step"]["seconds"]
    for run in dense["runs"]:
        assert run["evals"][-1]["seconds"] == pytest.approx(6 * step_s)
        assert run["evals"][-1]["tokens"] == 1536
    for name in ("report.html", "report.md", "plan.yaml", "calibration.json"):
        assert (place.dir / "cmp" / name).stat().st_size > 0
    assert re.match(r"[\d,]+ tokens in [\d,]+ documents; made from ", value["data"])
    assert escape_markdown(value["data"]) in (place.dir / "cmp" / "report.md").read_text("utf-8")


def test_the_same_command_again_trains_nothing(
    place: Workplace, finished: subprocess.CompletedProcess[str]
) -> None:
    again = place.run_fastffn("compare", "-c", "plan.yaml", "--json")
    assert again.returncode == 0, again.stderr
    assert "begin" not in again.stderr
    assert "calibration" not in again.stderr
    assert json.loads(again.stdout) == json.loads(finished.stdout)


def test_report_only_reads_what_is_there(
    place: Workplace, finished: subprocess.CompletedProcess[str]
) -> None:
    before = {file: file.stat().st_mtime_ns for file in (place.dir / "cmp").rglob("metrics.jsonl")}
    again = place.run_fastffn("compare", "-c", "plan.yaml", "--report-only", "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout) == json.loads(finished.stdout)
    assert all(file.stat().st_mtime_ns == stamp for file, stamp in before.items())


def test_a_changed_plan_is_refused_before_anything_is_written(
    place: Workplace, finished: subprocess.CompletedProcess[str]
) -> None:
    kept = (place.dir / "cmp" / "plan.yaml").read_text(encoding="utf-8")
    done = place.run_fastffn("compare", "-c", "plan.yaml", "-o", "tokens=3072")
    assert done.returncode == 2
    assert "max_steps was 6, is 12" in done.stderr
    assert "--out" in done.stderr
    assert (place.dir / "cmp" / "plan.yaml").read_text(encoding="utf-8") == kept


def test_a_folder_of_something_else_is_left_alone(place: Workplace) -> None:
    mine = place.dir / "mine"
    mine.mkdir(exist_ok=True)
    (mine / "notes.txt").write_text("important", encoding="utf-8")
    done = place.run_fastffn("compare", "-c", write_plan(place, name="other.yaml"), "--out", mine)
    assert done.returncode == 2
    assert "notes.txt" in done.stderr
    assert [file.name for file in mine.iterdir()] == ["notes.txt"]


def test_a_new_arm_runs_beside_finished_ones_and_a_diverging_one_is_a_result(
    place: Workplace, finished: subprocess.CompletedProcess[str]
) -> None:
    wild = TINY_PLAN + "  wild:\n    learning_rates: [1.0e+30]\n"
    shutil.copytree(place.dir / "cmp", place.dir / "moved")
    options = ("-o", "budgets=[tokens]", "-o", "seeds=[1]", "--json", "--out", "moved")
    done = place.run_fastffn("compare", "-c", write_plan(place, wild, "wild.yaml"), *options)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("begin   ") == 1
    wild_arm = json.loads(done.stdout)["arms"][2]
    assert wild_arm["runs"][0]["problem"].startswith("diverged at step ")
    assert wild_arm["runs"][0]["final_loss"] is None
    # Its model is the baseline's, whose time is known.
    assert "calibration" not in done.stderr


def test_a_stopped_comparison_saves_its_run_and_goes_on_from_there(workplace: Workplace) -> None:
    write_plan(workplace)
    words = ("compare", "-c", "plan.yaml", "-o", "tokens=76800", "-o", "budgets=[tokens]")
    words += ("-o", "seeds=[1]", "-o", "arms.low_rank.Schedule.at=0.9")
    process = subprocess.Popen(
        program(*words), cwd=workplace.dir, env=program_env(), stderr=subprocess.PIPE, text=True
    )
    run_dir = workplace.dir / "cmp" / "runs" / "tokens" / "dense" / "seed-1"
    deadline = time.monotonic() + 120
    while not _trained(run_dir) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 143, told
    assert "fastffn compare -c plan.yaml" in told
    saved = sorted((run_dir / "checkpoints").glob("step-*"))
    assert saved
    step = int(saved[-1].name.removeprefix("step-"))
    assert step < 300
    half = workplace.run_fastffn("compare", "-c", "plan.yaml", "--report-only", *words[3:])
    assert half.returncode == 0, half.stderr
    again = workplace.run_fastffn(*words[:-2], "-o", "arms.low_rank.Schedule.at=0.9")
    assert again.returncode == 0, again.stderr
    assert "continue  tokens dense seed 1" in again.stderr
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    resumed = [record["step"] for record in records if record["event"] == "resume"]
    assert resumed == [step]


def _trained(run_dir: Path) -> bool:
    file = run_dir / "metrics.jsonl"
    return file.exists() and '"train"' in file.read_text(encoding="utf-8")
