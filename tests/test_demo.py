"""`make demo`, shortened: what it prints is what the runs it made have measured."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.demo import TITLES, docstrings_of_the_library, english_text, next_free
from fastffn_cli.engine.run import read_metrics, series

ROOT = Path(__file__).parent.parent
STEPS = 4


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out_dir = tmp_path_factory.mktemp("demo") / "run"
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks/demo.py", "--out", out_dir, "--steps", str(STEPS)],
        capture_output=True,
        text=True,
        cwd=out_dir.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return out_dir, done.stdout


def row(text, title):
    """The cells of a line of the table."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"│ {title} ")]
    return [cell.strip() for cell in line.strip("│").split("│")]


@pytest.mark.slow
def test_every_number_of_the_table_is_a_run_s_own(demo):
    out_dir, text = demo
    result = json.loads((out_dir / "result.json").read_text(encoding="utf-8"))["arms"]
    speeds = {}
    for name in TITLES:
        records = read_metrics(out_dir / name)
        speeds[name] = records[-1]["tokens_per_s"]
        _, _, train, valid, perplexity, seconds = row(text, TITLES[name])
        assert train == f"{series(records, 'train', 'loss')[-1][1]:.3f}"
        assert valid == f"{series(records, 'eval', 'loss')[-1][1]:.3f}"
        assert perplexity == f"{result[name]['test_ppl']:.1f}"
        assert seconds == f"{result[name]['seconds']:.0f} s"
    for name in TITLES:
        assert row(text, TITLES[name])[1] == f"{speeds[name] / speeds['dense']:.2f} x"


@pytest.mark.slow
def test_the_dense_baseline_makes_as_many_steps_as_both_stages(demo):
    out_dir, _ = demo
    steps = {name: series(read_metrics(out_dir / name), "train", "loss")[-1][0] for name in TITLES}
    assert steps == {"stage1": STEPS, "stage2": STEPS, "dense": 2 * STEPS}


@pytest.mark.slow
def test_picture_samples_and_next_commands_are_there(demo):
    out_dir, text = demo
    assert (out_dir / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert len(re.findall(r"^> ", text, re.MULTILINE)) == 3
    assert f"generate 'The with statement' --model {out_dir / 'stage2'}" in text


def test_built_in_text_is_long_english_wherever_it_comes_from():
    for text in (english_text(), docstrings_of_the_library()):
        assert len(text) > 200_000
        assert text.count(" the ") > 1000


def test_a_second_demo_takes_the_next_folder(tmp_path):
    assert next_free(tmp_path) == tmp_path / "run-1"
    (tmp_path / "run-1").mkdir()
    assert next_free(tmp_path) == tmp_path / "run-2"
