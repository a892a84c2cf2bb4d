import json
import shutil
import subprocess

import pytest

from fastffn_cli.engine import storage
from tests.commands.in_process import run_in_process
from tests.conftest import call_program, program, program_env


@pytest.fixture(scope="module")
def bare_checkpoint(trained_run, tmp_path_factory):
    """The checkpoint of a model that was trained on ids of unknown origin: without tokenizer."""
    from fastffn_cli.engine.checkpoint import read_checkpoint, write_checkpoint

    checkpoint = read_checkpoint(trained_run.checkpoint_dir)
    folder = tmp_path_factory.mktemp("bare") / "checkpoint"
    trainer = {key: value for key, value in checkpoint.trainer.items() if key != "data"}
    write_checkpoint(
        folder, config=checkpoint.config, trainer=trainer, tensors=checkpoint.tensors()
    )
    return folder


@pytest.fixture
def generate(trained_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        return run_in_process(capsys, "generate", "--model", trained_run.dir, *arguments)

    return call


def test_text_streams_to_stdout_and_talk_to_stderr(trained_run, tmp_path):
    arguments = ("generate", "The river", "--model", trained_run.dir, "--seed", "3")
    done = call_program(*arguments, "--max-tokens", "12", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("The river") and done.stdout.endswith("\n")
    assert str(trained_run.checkpoint_dir) in done.stderr
    assert "12 tokens" in done.stderr and "prompt 9 tokens · seed 3" in done.stderr


def test_json_is_a_list_of_the_keys_of_the_contract(generate):
    arguments = ("The river", "Seven", "--json", "--max-tokens", "6", "--seed", "5")
    done = generate(*arguments)
    records = json.loads(done.stdout)
    assert [record["prompt"] for record in records] == ["The river", "Seven"]
    for record in records:
        assert list(record) == ["prompt", "text", "tokens", "finish_reason"]
        assert len(record["tokens"]) <= 6 and record["finish_reason"] in ("eos", "length")
    assert generate(*arguments).stdout == done.stdout


def test_stdin_and_files_give_the_same_as_arguments(generate, trained_run, tmp_path):
    options = ("--greedy", "--max-tokens", "5")
    (tmp_path / "prompts.txt").write_text("One é\n\nTwo\n", encoding="utf-8")
    expected = generate("One é", "Two", *options).stdout
    assert expected.startswith("One é") and "\n\nTwo" in expected
    assert generate("--file", "prompts.txt", *options).stdout == expected
    piped = subprocess.run(
        program("generate", "--model", trained_run.dir, *options),
        input="One é\nTwo\n",
        capture_output=True,
        encoding="utf-8",
        cwd=tmp_path,
        env=program_env(),
    )
    assert piped.stdout == expected


def test_cache_and_no_cache_write_the_same(generate):
    options = ("The river", "Rope", "--greedy", "--max-tokens", "15", "--json")
    assert generate(*options, "--no-cache").stdout == generate(*options).stdout


def test_the_newest_run_is_found_and_named(trained_run, monkeypatch, capsys):
    monkeypatch.chdir(trained_run.dir.parents[1])
    done = run_in_process(capsys, "generate", "a", "--max-tokens", "1")
    assert done.returncode == 0
    assert "runs/tiny/checkpoints/step-00000008" in done.stderr


def test_the_last_position_ends_a_text_and_is_told(generate):
    done = generate("a" * 30, "--max-tokens", "100", "--json", "--greedy")
    (record,) = json.loads(done.stdout)
    assert len(record["tokens"]) == 3 and record["finish_reason"] == "length"
    assert "last position (32 tokens" in done.stderr


def test_a_model_without_tokenizer_takes_and_gives_ids(bare_checkpoint, capsys):
    options = ("--model", bare_checkpoint, "--greedy", "--max-tokens", "4")
    done = run_in_process(capsys, "generate", *options, "--prompt-ids", "116 104 101")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("116 104 101 ") and len(done.stdout.split()) == 7
    refused = run_in_process(capsys, "generate", *options, "text")
    assert refused.returncode == 2 and refused.stdout == ""
    assert "--prompt-ids" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("a", "--temperature", "0"), "--temperature must be above 0"),
        (("a", "--top-p", "1.5"), "--top-p must be"),
        (("a", "--prompt-ids", "1"), "either as text or as --prompt-ids"),
        (("",), "prompt 1 is empty"),
        (("--prompt-ids", "1 999"), "token id 999"),
        (("a" * 40,), "has 40 tokens; the model has 32 positions"),
        (("--file", "gone.txt"), "gone.txt: No such file"),
    ],
)
def test_mistakes_end_with_exit_2_and_an_empty_stdout(generate, arguments, words):
    done = generate(*arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stdout == ""


def test_no_checkpoint_anywhere_says_what_to_type(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    done = run_in_process(capsys, "generate", "a")
    assert done.returncode == 2
    assert "no whole checkpoint" in done.stderr and "fastffn pretrain" in done.stderr


def test_a_damaged_checkpoint_is_refused(trained_run, tmp_path, capsys):
    copy_dir = tmp_path / "copy"
    shutil.copytree(trained_run.checkpoint_dir, copy_dir)
    weights_file = copy_dir / "model.safetensors"
    content = bytearray(weights_file.read_bytes())
    content[-10] ^= 1
    weights_file.write_bytes(content)
    assert storage.damage(copy_dir, checksums=True) is not None
    done = run_in_process(capsys, "generate", "a", "--model", copy_dir)
    assert done.returncode == 2 and "model.safetensors" in done.stderr
