"""Shared by all tests: a CPU set up before paddle comes in, tiny data, a tiny trained run."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fastffn_cli.engine.cpu import prepare_environment

# Before any test module imports paddle or numpy: both read their variables once.
prepare_environment()

ROOT_DIR = Path(__file__).resolve().parents[1]
FIXTURES_DIR = Path(__file__).parent / "fixtures"
PROCESS_TIMEOUT_S = 240

# Slow tests in these folders start jobs of several processes, or an imitated card.
SEVERAL_DIRS = (ROOT_DIR / "tests" / "distributed", ROOT_DIR / "tests" / "npu")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what `make several` runs."""
    for item in items:
        if item.get_closest_marker("slow") and item.path.parent in SEVERAL_DIRS:
            item.add_marker(pytest.mark.several)


TINY_YAML = """\
Global:
  device: cpu
  seed: 7
Engine:
  max_steps: 8
  logging_freq: 1
  eval_freq: 4
  eval_iters: 2
  save_load:
    save_steps: 4
    output_dir: ./runs/tiny
Model:
  hidden_size: 32
  num_layers: 2
  num_attention_heads: 4
  hidden_dropout_prob: 0.1
  attention_probs_dropout_prob: 0.1
  max_position_embeddings: 32
  ffn:
    kind: low_rank
    rank: 4
Data:
  batch_size:
    global_batch_size: 8
    micro_batch_size: 4
  dataset:
    input_dir: {data_dir}
    split: 80,15,5
    max_seq_len: 32
Optimizer:
  lr:
    decay_steps: 20
    warmup_steps: 2
    max_lr: 1e-3
    min_lr: 1e-4
"""

TEXT = (
    "the river runs under an old bridge and nobody counts the boats that pass below it while "
    "seven clerks in the town hall write letters about bread, rain, taxes and the price of rope"
)


def write_corpus(file: Path, documents: int = 60, seed: int = 11) -> Path:
    """Write a .jsonl of made-up sentences, the same ones for the same arguments."""
    source, vocabulary = random.Random(seed), TEXT.split()
    with file.open("w", encoding="utf-8") as lines:
        for _ in range(documents):
            words = source.choices(vocabulary, k=source.randint(30, 90))
            lines.write(json.dumps({"text": " ".join(words) + "."}) + "\n")
    return file


@dataclass(frozen=True)
class Workplace:
    """A folder with a configuration in it, and the ways to run the program there."""

    dir: Path
    config_file: Path
    run_fastffn: Callable[..., subprocess.CompletedProcess[str]]

    @property
    def run_dir(self) -> Path:
        """Where `TINY_YAML` puts its run."""
        return self.dir / "runs" / "tiny"


@pytest.fixture(scope="session", autouse=True)
def compiled_kernels() -> None:
    """The CPU kernels, compiled before anything is timed or compared; none without a compiler."""
    from models.kernels import library

    with contextlib.suppress(library.Unavailable):
        library.load()


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small prepared data folder: 60 documents, about 20 thousand tokens of one byte each."""
    from fastffn_cli.data.prepare import Request, prepare

    folder = tmp_path_factory.mktemp("text")
    corpus = write_corpus(folder / "corpus.jsonl")
    prepare(Request(inputs=(corpus,), out_dir=folder / "tokens", tokenizer="bytes"))
    return folder / "tokens"


def call_program(
    *arguments: str | Path,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    preexec: Callable[[], Any] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run `python -m fastffn_cli ARGUMENTS` in `cwd` and return what it said."""
    return subprocess.run(
        program(*arguments),
        cwd=cwd,
        env=program_env(env),
        capture_output=True,
        text=True,
        timeout=PROCESS_TIMEOUT_S,
        preexec_fn=preexec,
    )


def program(*arguments: str | Path) -> list[str]:
    """The command line of a `fastffn` process."""
    return [sys.executable, "-m", "fastffn_cli", *map(str, arguments)]


def program_env(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a `fastffn` process: this source tree, no terminal tricks."""
    kept = {name: value for name, value in os.environ.items() if name != "FORCE_COLOR"}
    return {**kept, "PYTHONPATH": str(ROOT_DIR), "NO_COLOR": "1", **(extra or {})}


@pytest.fixture(scope="session")
def npu_env() -> dict[str, str]:
    """What a process needs in its environment to have an `npu`: the imitation of tests/npu."""
    from tests.npu.plugin import CannotBuild, build_plugin

    try:
        folder = build_plugin()
    except CannotBuild as reason:
        pytest.skip(str(reason))
    return {"CUSTOM_DEVICE_ROOT": str(folder), "GLOG_minloglevel": "1"}


@pytest.fixture(scope="session")
def fused_npu_env(npu_env: dict[str, str]) -> dict[str, str]:
    """The same with a plugin that has fused attention."""
    from tests.npu.plugin import build_operators

    return {**npu_env, "CUSTOM_DEVICE_ROOT": str(build_operators())}


@pytest.fixture
def run_fastffn(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`run_fastffn(*args)` runs the program in this test's own folder, as a real process."""

    def call(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        return call_program(*arguments, **{"cwd": tmp_path, **options})

    return call


def make_workplace(folder: Path, data_dir: Path) -> Workplace:
    """Write `TINY_YAML` into `folder`."""
    config_file = folder / "tiny.yaml"
    config_file.write_text(TINY_YAML.format(data_dir=data_dir), encoding="utf-8")

    def call(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        return call_program(*arguments, **{"cwd": folder, **options})

    return Workplace(folder, config_file, call)


@pytest.fixture
def workplace(tmp_path: Path, data_dir: Path) -> Workplace:
    """A fresh folder with the tiny configuration."""
    return make_workplace(tmp_path, data_dir)


@dataclass(frozen=True)
class Outcome:
    """What a command did inside this process: exit code, stdout, stderr."""

    code: int
    out: str
    err: str


@pytest.fixture
def fastffn(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    """`fastffn(*args)` runs the program's `main` in `workplace`, sparing the start of a process."""
    from fastffn_cli.app import main

    monkeypatch.chdir(workplace.dir)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: str | Path) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["fastffn", *map(str, arguments)])
        capfd.readouterr()
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        return Outcome(code, *capfd.readouterr())

    return call


@dataclass(frozen=True)
class TrainedRun:
    """A finished stage-1 run that tests read and never change."""

    dir: Path
    config_file: Path
    stderr: str
    stdout: str

    @property
    def checkpoint_dir(self) -> Path:
        """Its last checkpoint."""
        return self.dir / "checkpoints" / "step-00000008"


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> TrainedRun:
    """Eight steps of the tiny configuration, trained by a real process."""
    place = make_workplace(tmp_path_factory.mktemp("trained"), data_dir)
    done = place.run_fastffn("pretrain", "-c", place.config_file)
    assert done.returncode == 0, done.stderr
    return TrainedRun(place.run_dir, place.config_file, done.stderr, done.stdout)
