"""The command line as a whole: help, imports, options, exit codes, streams."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COMMANDS = (
    "prepare", "pretrain", "convert", "posttrain", "eval", "generate", "launch",
    "bench", "compare", "inspect", "config", "doctor", "rank-table",
)  # fmt: skip
HEAVY = ("paddle", "numpy", "pydantic", "yaml", "matplotlib", "safetensors", "tokenizers")
# An option is an interface for ever: adding or removing one means changing this table on purpose.
OPTIONS = json.loads((Path(__file__).parent / "cli_options.json").read_text(encoding="utf-8"))


def fastffn(*arguments, cwd=None, **environment):
    return subprocess.run(
        [sys.executable, "-m", "fastffn_cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **environment},
        check=False,
    )


def options_of(command):
    """Every option and argument that a command declares, as Typer sees them."""
    from typer.main import get_command

    from fastffn_cli.app import app

    declared = get_command(app).commands[command].params
    return sorted(
        "/".join(parameter.opts) if parameter.opts[0].startswith("-") else parameter.name.upper()
        for parameter in declared
    )


def test_help_imports_nothing_heavy():
    program = (
        "import sys\n"
        "from fastffn_cli.app import main\n"
        "sys.argv = ['fastffn', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert result.stderr.strip() == "[]"


def test_help_lists_every_command_in_its_panel():
    text = fastffn("--help").stdout
    train, look = text.index("Train and use a model"), text.index("Look before you run")
    assert all(train < text.index(f" {name} ") < look for name in COMMANDS[:7])
    assert all(look < text.index(f" {name} ") for name in COMMANDS[7:])


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_examples(command):
    result = fastffn(command, "-h")
    assert result.returncode == 0
    assert "Examples" in result.stdout
    assert f"fastffn {command}" in result.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_options_are_frozen(command):
    assert options_of(command) == OPTIONS[command]


def test_version_names_the_paddle_build_without_importing_it():
    text = fastffn("--version").stdout
    assert re.fullmatch(r"fastffn \d+\.\d+\.\d+ \(.*python 3\.\d+\.\d+\)\n", text)


def test_no_arguments_print_help_with_exit_code_2():
    result = fastffn()
    assert result.returncode == 2
    assert "Usage" in result.stdout + result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pretrian"], "Did you mean 'pretrain'"),
        (["pretrain", "-c", "demo", "--reume"], "--resume"),
        (["pretrain"], "Missing option"),
    ],
)
def test_typos_get_a_suggestion_and_exit_code_2(arguments, said):
    result = fastffn(*arguments)
    assert result.returncode == 2
    assert said in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("prepare", ["absent.txt", "--out", "out"]),
        ("pretrain", ["-c", "absent.yaml"]),
        ("posttrain", ["-c", "absent.yaml"]),
        ("convert", ["absent"]),
        ("convert", []),
        ("eval", ["absent"]),
        ("generate", ["Hello", "--model", "absent"]),
        ("launch", ["--nproc", "2", "--", "pretrain", "-c", "absent.yaml"]),
        ("bench", ["-c", "absent.yaml"]),
        ("inspect", ["absent"]),
        ("config", ["-c", "absent.yaml"]),
        ("rank-table", ["check", "absent.json"]),
        ("rank-table", ["merge", "absent.json", "missing.json"]),
    ],
)
def test_missing_files_are_a_message_on_stderr_and_exit_code_2(tmp_path, command, arguments):
    result = fastffn(command, *arguments, cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert result.stderr.strip()
    assert list(tmp_path.iterdir()) == []


def test_no_colour_codes_reach_a_pipe(tmp_path):
    result = fastffn("convert", cwd=tmp_path)
    assert "\x1b[" not in result.stderr


def test_completion_script_is_offered():
    result = fastffn("--show-completion", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert result.returncode in (0, 2)
    assert "Traceback" not in result.stderr
