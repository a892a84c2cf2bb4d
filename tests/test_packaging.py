"""What a user installs: the wheel in a clean environment, without the source tree."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = [pytest.mark.slow, pytest.mark.install]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out_dir = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", out_dir, ROOT],
        check=True,
        capture_output=True,
    )
    (file,) = out_dir.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The program in an environment of its own; returns how to run it from an empty folder."""
    place = tmp_path_factory.mktemp("clean")
    subprocess.run([sys.executable, "-m", "venv", place / "venv"], check=True)
    python = place / "venv" / "bin" / "python"
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", f"{wheel}[cpu]"], check=True, cwd=place
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def run(*arguments):
        return subprocess.run(
            [place / "venv" / "bin" / "fastffn", *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=place,
            env=environment,
            check=False,
        )

    run.place = place
    return run


def test_wheel_carries_program_models_and_configs_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {
        "fastffn_cli",
        "models",
    }
    shipped = {Path(name).name for name in names if "shipped_configs" in name}
    assert shipped == {file.name for file in (ROOT / "configs").glob("*.yaml")}


def test_help_and_doctor_run_when_installed(installed):
    assert installed("--help").returncode == 0
    report = installed("doctor", "--json")
    assert report.returncode == 0, report.stderr + report.stdout
    assert json.loads(report.stdout)["ok"] is True


def test_three_commands_train_convert_and_go_on(installed):
    text = "The quick brown fox jumps over the lazy dog. " * 1200
    (installed.place / "text.txt").write_text(text)
    small = [
        "-o", "Data.dataset.input_dir=data", "-o", "Data.dataset.max_seq_len=32",
        "-o", "Model.hidden_size=32", "-o", "Model.num_layers=2",
        "-o", "Engine.max_steps=20", "-o", "Engine.eval_freq=10",
        "-o", "Engine.save_load.save_steps=10",
    ]  # fmt: skip
    for arguments in (
        ["prepare", "text.txt", "--out", "data", "--tokenizer", "bytes"],
        ["pretrain", "-c", "demo", *small],
        ["convert"],
        ["posttrain", "-c", "demo-post", *small],
    ):
        result = installed(*arguments)
        assert result.returncode == 0, result.stderr
    measured = json.loads(installed("eval", "--json").stdout)
    assert measured["loss"] < 5.0
