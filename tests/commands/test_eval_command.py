import json

import pytest

from tests.commands.in_process import run_in_process
from tests.conftest import call_program

TEXT = "The river runs under an old bridge, and nobody counts the boats. " * 10


@pytest.fixture
def evaluate(trained_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")

    def call(*arguments):
        return run_in_process(capsys, "eval", trained_run.dir, *arguments)

    return call


def test_a_text_gives_the_keys_of_the_contract_and_twice_the_same(evaluate, trained_run, tmp_path):
    arguments = ("--data", "text.txt", "--overlap", "8", "--json")
    done = call_program("eval", trained_run.dir, *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout)
    assert {"task", "loss", "ppl", "tokens", "adjusted_ppl", "original_tokens"} <= values.keys()
    assert values["tokens"] == len(TEXT) - 1
    assert str(trained_run.checkpoint_dir) in done.stderr
    for batch_size in ("1", "3", "64"):
        assert evaluate(*arguments, "--batch-size", batch_size).stdout == done.stdout


def test_without_data_the_test_part_of_the_newest_run_is_measured(
    trained_run, data_dir, monkeypatch, capsys
):
    monkeypatch.chdir(trained_run.dir.parents[1])
    own = run_in_process(capsys, "eval", "--json")
    assert own.returncode == 0, own.stderr
    named = run_in_process(capsys, "eval", "--json", "--data", data_dir, "--part", "test")
    assert json.loads(own.stdout) == json.loads(named.stdout)
    assert json.loads(own.stdout)["part"] == "test"


def test_the_card_goes_to_stdout(evaluate):
    done = evaluate("--data", "text.txt")
    assert done.returncode == 0, done.stderr
    assert "perplexity" in done.stdout and "bits per byte" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--task", "cloze2"), "the tasks are lm"),
        (("--data", "gone.txt"), "gone.txt: does not exist"),
        (("--data", "text.txt", "--seq-len", "33"), "--seq-len 33 must be 2 to 32"),
        (("--data", "text.txt", "--batch-size", "0"), "--batch-size"),
    ],
)
def test_mistakes_end_with_exit_2(evaluate, arguments, words):
    done = evaluate(*arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stdout == ""
