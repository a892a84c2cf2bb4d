"""prepare, pretrain, convert, posttrain, eval, generate on an npu: the CPU's bits in float32.

And both stages in one run, whose optimizer is handed over on the device.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TINY_YAML, call_program, write_corpus
from tests.engine.runs import assert_same_bits, assert_same_state, exact_metrics

pytestmark = pytest.mark.slow

STEPS = (
    *("-o", "Engine.max_steps=4", "-o", "Engine.eval_freq=2"),
    *("-o", "Engine.save_load.save_steps=2"),
)
BOTH_STAGES = (
    *("-o", "Schedule={switch: fraction, at: 0.5, dense_start: 0.25}"),
    *("-o", "Engine.save_load.output_dir=./runs/both"),
)
RUNS = ["tiny", "post", "both"]
LAST = "checkpoints/step-00000004"
PADDLE_ALONE = {"FASTFFN_KERNELS": "off"}  # as on the npu, whose bits are compared


@dataclass(frozen=True)
class Chain:
    """A folder in which all commands have run on one device, and what they said."""

    dir: Path
    stdout: dict[str, str]
    stderr: dict[str, str]

    def answer(self, command: str) -> Any:
        return json.loads(self.stdout[command])


def run_chain(folder: Path, device: str, env: dict[str, str]) -> Chain:
    write_corpus(folder / "corpus.jsonl")
    (folder / "tiny.yaml").write_text(
        TINY_YAML.format(data_dir="tokens").replace("device: cpu", f"device: {device}")
    )
    there = ("--device", device)
    dense = ("-o", "Model.ffn={kind: dense}", "-o", "Engine.save_load.output_dir=./runs/post")
    commands: dict[str, tuple[str, ...]] = {
        "prepare": ("corpus.jsonl", "--out", "tokens", "--tokenizer", "bytes"),
        "pretrain": ("-c", "tiny.yaml", *STEPS),
        "convert": ("--out", "dense", *there),
        "posttrain": ("-c", "tiny.yaml", *STEPS, *dense),
        "eval": ("runs/post", "--data", "tokens", *there, "--json"),
        "one run": ("-c", "tiny.yaml", *STEPS, *BOTH_STAGES),
        "generate": ("the river", "--model", "runs/post", "--seed", "3", *there, "--json"),
    }
    stdout, stderr = {}, {}
    for command, arguments in commands.items():
        program = "pretrain" if command == "one run" else command
        done = call_program(program, *arguments, cwd=folder, env=env)
        assert done.returncode == 0, f"{command} on {device}: {done.stderr}"
        stdout[command], stderr[command] = done.stdout, done.stderr
    return Chain(folder, stdout, stderr)


@pytest.fixture(scope="module")
def chains(
    npu_env: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Chain, Chain]:
    """The commands on the npu and on the CPU."""
    # The program itself must keep the plugin's log away from the user.
    talkative = {name: value for name, value in npu_env.items() if name != "GLOG_minloglevel"}
    with ThreadPoolExecutor(2) as pool:
        npu = pool.submit(run_chain, tmp_path_factory.mktemp("npu"), "npu", talkative)
        cpu = pool.submit(run_chain, tmp_path_factory.mktemp("cpu"), "cpu", PADDLE_ALONE)
        return npu.result(), cpu.result()


@pytest.mark.parametrize("run", RUNS)
def test_runs_report_the_losses_of_the_cpu(chains: tuple[Chain, Chain], run: str) -> None:
    npu, cpu = (exact_metrics(chain.dir / "runs" / run) for chain in chains)
    assert [step for event, step in npu if event == "train"] == [1, 2, 3, 4]
    assert npu == cpu


@pytest.mark.parametrize("run", RUNS)
def test_runs_end_with_the_weights_and_the_optimizer_of_the_cpu(
    chains: tuple[Chain, Chain], run: str
) -> None:
    assert_same_state(*(chain.dir / "runs" / run / LAST for chain in chains))


def test_the_merged_weights_are_those_of_the_cpu(chains: tuple[Chain, Chain]) -> None:
    assert_same_bits(*(chain.dir / "dense" / "model.safetensors" for chain in chains))


def test_evaluation_and_generation_answer_as_on_the_cpu(chains: tuple[Chain, Chain]) -> None:
    npu, cpu = chains
    assert npu.answer("eval") == cpu.answer("eval")
    assert npu.answer("generate") == cpu.answer("generate")
    assert len(npu.answer("generate")[0]["tokens"]) > 10


def test_the_npu_is_named_and_its_plugin_is_not_heard(chains: tuple[Chain, Chain]) -> None:
    npu, _ = chains
    assert "npu:0 · float32" in npu.stderr["pretrain"]
    for command, stderr in npu.stderr.items():
        assert "Warning" not in stderr, command
        assert "custom" not in stderr, command
