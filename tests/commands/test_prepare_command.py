from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from fastffn_cli.data.token_files import open_tokens
from tests.interop.mindrecord_files import write_mindrecord

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def corpus_file(tmp_path: Path) -> Path:
    file = tmp_path / "corpus.jsonl"
    file.write_text('{"body": "one two three"}\n{"body": "four"}\n', "utf-8")
    return file


def test_prepare_puts_meta_data_on_stdout_and_talk_on_stderr(
    corpus_file: Path, tmp_path: Path, run_fastffn: Run
) -> None:
    done = run_fastffn(
        "prepare", corpus_file, "--out", "data/it", "--tokenizer", "bytes", "--json-key", "body",
        "--name", "words", "--workers", "1", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    meta = json.loads(done.stdout)
    assert (meta["documents"], meta["tokens"], meta["vocab_size"]) == (2, 19, 257)
    assert "prepared data/it" in done.stderr
    assert "pretrain" in done.stderr
    opened = open_tokens(tmp_path / "data" / "it" / "words", vocab_size=257)
    assert opened.num_tokens == 19


def test_prepare_without_json_leaves_stdout_empty(corpus_file: Path, run_fastffn: Run) -> None:
    done = run_fastffn(
        "prepare", corpus_file, "--out", "out", "--json-key", "body", "--tokenizer", "train:260"
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.txt", "--out", "out"], "none.txt: there is no such file"),
        (["corpus.jsonl", "--out", "out"], "corpus.jsonl:1: no key 'text' (the keys are: 'body')"),
        (["corpus.jsonl", "--out", "."], ". is there already, and is never overwritten"),
        (["corpus.jsonl", "--out", "out", "--tokenizer", "gpt3"], "tokenizer 'gpt3'"),
        (["corpus.jsonl", "--out", "out", "--tokenizer", "train:9"], "at least 257 ids"),
        (["corpus.jsonl", "--out", "corpus.jsonl/out", "--json-key", "body"], "cannot write"),
        (["corpus.jsonl", "--out", "out", "--name", "a/b"], "name 'a/b'"),
        (["corpus.jsonl"], "--out"),
        (["corpus.jsonl", "--out", "out", "--workers", "0"], "--workers"),
    ],
)
def test_prepare_refuses_with_exit_2_and_says_why(
    arguments: list[str], message: str, corpus_file: Path, tmp_path: Path, run_fastffn: Run
) -> None:
    done = run_fastffn("prepare", *arguments)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.jsonl"]


def test_prepare_reads_a_mindrecord_and_says_what_it_found(
    tmp_path: Path, run_fastffn: Run
) -> None:
    write_mindrecord(tmp_path / "wiki.mindrecord", [[1, 2, 96], [4, 96, 5]])
    done = run_fastffn("prepare", "wiki.mindrecord", "--out", "out", "--eos-id", "96", "--json")
    assert done.returncode == 0, done.stderr
    meta = json.loads(done.stdout)
    assert (meta["documents"], meta["tokens"], meta["utf8_bytes"]) == (3, 6, None)
    assert "2 of 3 ids" in done.stderr
    assert "Model.vocab_size has to be above 96" in done.stderr
    assert open_tokens(tmp_path / "out").eos_id == 96


def test_prepare_help_has_examples(run_fastffn: Run) -> None:
    done = run_fastffn("prepare", "-h")
    assert done.returncode == 0
    assert "--tokenizer train:8000" in done.stdout
    assert "--json-key" in done.stdout
