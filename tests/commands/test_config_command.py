"""`fastffn config`: stdout is data, stderr is talk, and wrong questions end with 2."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fastffn_cli
from fastffn_cli.config.load import load_config
from fastffn_cli.config.shipped import shipped_names

pytestmark = pytest.mark.slow


@pytest.fixture
def run(tmp_path):
    def run_command(*arguments, stdin=""):
        return subprocess.run(
            [sys.executable, "-m", "fastffn_cli", "config", *arguments],
            capture_output=True,
            text=True,
            input=stdin,
            check=False,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(Path(fastffn_cli.__file__).parent.parent)},
        )

    return run_command


def test_the_resolved_configuration_is_yaml_with_origins(run, tmp_path):
    done = run("-c", "gpt-6l-fastffn", "-o", "Model.ffn.rank=4")
    assert done.returncode == 0
    assert done.stderr == ""
    (tmp_path / "a.yaml").write_text(done.stdout)
    expected = load_config("gpt-6l-fastffn", ["Model.ffn.rank=4"]).config
    assert load_config(str(tmp_path / "a.yaml")).config == expected
    assert "# -o" in done.stdout
    assert "# derived" in done.stdout


def test_plain_leaves_the_origins_out_and_needs_no_file(run, tmp_path):
    done = run("--plain")
    assert done.returncode == 0
    assert "#" not in done.stdout
    (tmp_path / "a.yaml").write_text(done.stdout)
    assert load_config(str(tmp_path / "a.yaml")).config.Model.hidden_size == 1024


def test_a_configuration_from_stdin_and_its_warnings_on_stderr(run):
    text = "Optimizer:\n  lr:\n    max_lr: 1e-5\n    min_lr: 5e-5\n"
    done = run("-c", "-", "--json", stdin=text)
    assert done.returncode == 0
    answer = json.loads(done.stdout)
    assert answer["config"]["Optimizer"]["lr"]["max_lr"] == 1e-5
    assert answer["origins"]["Optimizer.lr.max_lr"] == "<stdin>:3"
    assert answer["origins"]["Data.batch_size.global_batch_size"] == "derived"
    assert done.stderr.startswith("warning <stdin>:4  min_lr 5e-05 is above max_lr 1e-05")


def test_what_became_of_fleetx_keys_is_listed_on_stderr_and_in_the_json(run, tmp_path):
    (tmp_path / "theirs.yaml").write_text(
        "Global:\n  seed: 3\n  local_batch_size: 4\nModel:\n  fuse_attn_qkv: True\n"
    )
    done = run("-c", "theirs.yaml", "-o", "Optimizer.beta1=0.8")
    assert done.returncode == 0
    assert "local_batch_size: 4" in done.stdout
    assert done.stderr.splitlines() == [
        "note -o Optimizer.beta1=0.8  is read as Optimizer.adam_beta1=0.8",
        "theirs.yaml:3  Global.local_batch_size -> Data.batch_size.local_batch_size",
        "theirs.yaml:5  Model.fuse_attn_qkv: accepted, no effect: q, k and v are one matrix here; "
        "convert reads checkpoints of both forms",
        "theirs.yaml is read as ppfleetx (2023) YAML: 1 key moved, 1 without effect, 1 as it is",
    ]
    dialect = json.loads(run("-c", "theirs.yaml", "--json").stdout)["dialect"]
    assert dialect["name"] == "ppfleetx"
    assert [move["to"] for move in dialect["moves"]] == ["Data.batch_size.local_batch_size", None]
    assert json.loads(run("--json").stdout)["dialect"] == {"name": "fastffn", "moves": []}


def test_a_key_is_explained_with_its_value(run):
    done = run("max_lr", "-c", "gpt-6l-dense", "--json")
    answer = json.loads(done.stdout)
    assert answer["key"] == "Optimizer.lr.max_lr"
    assert answer["value"].startswith("5.0e-06   (")
    shown = run("Optimizer.lr")
    assert shown.returncode == 0
    assert "warmup_steps" in shown.stdout


def test_an_unknown_key_ends_with_2_and_a_suggestion(run):
    done = run("Optimizer.lr.mx_lr")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Did you mean 'Optimizer.lr.max_lr'?" in done.stderr


def test_the_schema_is_json_on_stdout(run):
    done = run("--schema")
    assert done.returncode == 0
    assert json.loads(done.stdout)["title"] == "fastffn configuration"


def test_the_shipped_configs_are_listed(run):
    done = run("--list")
    assert done.stdout.split() == shipped_names()
    assert json.loads(run("--list", "--json").stdout) == shipped_names()


def test_questions_that_exclude_each_other_end_with_2(run):
    done = run("max_lr", "--schema")
    assert done.returncode == 2
    assert "exclude each other" in done.stderr


def test_the_command_imports_neither_paddle_nor_numpy():
    code = (
        "import sys, fastffn_cli.commands.config, fastffn_cli.config.load\n"
        "sys.exit(bool({'paddle', 'numpy'} & set(sys.modules)))"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(fastffn_cli.__file__).parent.parent)}
    assert subprocess.run([sys.executable, "-c", code], check=False, env=env).returncode == 0
