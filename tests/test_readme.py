"""The README tells the truth: its commands run, its tables are the program's own."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if line.strip()]
# The demo's model is kept, its length is not: the commands are what is tested here.
SHORT = [
    "-o", "Engine.max_steps=6", "-o", "Engine.eval_iters=1",
    "-o", "Data.batch_size={global_batch_size: 2, micro_batch_size: 2}",
]  # fmt: skip

SHORT_PLAN = [
    "-o", "tokens=4096", "-o", "seeds=[1]", "-o", "learning_rates=[3e-3]", "-o", "evaluations=1",
    "-o", "eval_iters=1", "-o", "budgets=[tokens]", "-o", "calibration={rounds: 1, steps: 1}",
]  # fmt: skip
SHORT_LAUNCH = [
    "-o",
    "Engine.max_steps=2",
    *SHORT[2:4],
    "-o",
    "Data.batch_size={global_batch_size: 2, micro_batch_size: 1}",
]
SHORTER = {
    "pretrain": SHORT, "posttrain": SHORT, "compare": SHORT_PLAN, "launch": SHORT_LAUNCH,
}  # fmt: skip
IMITATION = "export CUSTOM_DEVICE_ROOT=$(python -m tests.npu.plugin) HOST_NPU_DEVICES=2"


def between(marker):
    return README.split(f"<!-- {marker}:begin -->\n")[1].split(f"<!-- {marker}:end -->")[0]


def run(words, cwd, env=None):
    return subprocess.run(
        words,
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
        check=False,
    )


@pytest.mark.slow
def test_every_command_of_the_readme_runs(tmp_path, npu_env):
    topics = pytest.importorskip("pydoc_data.topics").topics
    (tmp_path / "book.txt").write_text("\n\n".join(topics[key] for key in sorted(topics)))
    executed = 0
    env = {}
    for line in COMMANDS:
        program, *arguments = shlex.split(line)
        if program == "make":
            result = run(["make", "-n", *arguments], ROOT)
        elif program == "export":
            assert line == IMITATION
            # Built by the fixture: what the line's command prints.
            env = {**npu_env, "HOST_NPU_DEVICES": "2"}
            continue
        else:
            assert program == "fastffn", f"the README shows an unknown program: {line}"
            short = [] if "--dry-run" in arguments else SHORTER.get(arguments[0], [])
            words = [sys.executable, "-m", "fastffn_cli", *arguments, *short]
            result = run(words, tmp_path, env if "npu" in arguments else {})
        assert result.returncode == 0, f"{line}\n{result.stderr}"
        executed += 1
    assert executed >= 12


def test_key_table_is_the_schema():
    from fastffn_cli.config.table import key_table_markdown

    assert between("keys").strip() == key_table_markdown().strip()


def test_exit_codes_are_those_of_the_program():
    from fastffn_cli import errors

    stated = {int(code) for code in re.findall(r"^\| (\d+)(?:, \d+)? \|", README, re.MULTILINE)}
    stated |= {int(code) for code in re.findall(r"^\| \d+, (\d+) \|", README, re.MULTILINE)}
    assert stated == {value for name, value in vars(errors).items() if name.startswith("EXIT_")}


def test_shipped_configurations_are_all_listed():
    section = README.split("## Shipped configurations")[1].split("\n## ")[0]
    named = set(re.findall(r"`([a-z0-9.-]+)`", section))
    assert {file.stem for file in (ROOT / "configs").glob("*.yaml")} <= named


def test_every_file_and_folder_of_the_map_exists():
    section = README.split("## The map of the house")[1]
    for name in re.findall(r"^ +(\w[\w.]*/?)", section, re.MULTILINE):
        path = name.rstrip("/")
        assert (ROOT / path).exists() or (ROOT / "fastffn_cli" / path).exists(), name


def test_demo_output_stands_in_the_readme():
    shown = between("demo")
    assert "test perplexity" in shown
    assert "what to type next" in shown


def test_links_lead_to_files():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target
