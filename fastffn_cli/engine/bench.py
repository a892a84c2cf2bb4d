"""Stage 1 against dense on this machine: the same training step, interleaved, as a ratio.

Timed is the engine's own `TrainStep` (forward, backward, clip, AdamW) on synthetic tokens, so no
data is needed. A round runs some steps of one model, then as many of the other: whatever slows the
machine down for a while slows both. Peak memory is measured apart, each model alone in a process of
its own, because two models in one process cannot be told apart there.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from fastffn_cli.config.dump import dump_config
from fastffn_cli.config.schema import Config
from fastffn_cli.data.dataset import Batch
from fastffn_cli.engine.device import Device
from fastffn_cli.engine.memory import estimate_memory
from fastffn_cli.engine.model import build_model, dense_counterpart, gpt_config
from fastffn_cli.engine.optimizer import AdamW
from fastffn_cli.engine.out_of_memory import advise
from fastffn_cli.engine.precision import choose_precision
from fastffn_cli.engine.step import TrainStep
from fastffn_cli.errors import EXIT_OUT_OF_MEMORY, OutOfMemory, UserError, is_out_of_memory
from fastffn_cli.tasks.causal_lm import CausalLM
from models.gpt import GPTConfig, flops_per_token

ARMS = ("stage1", "dense")
WARM_UP_STEPS = 2
# The other process imports from where this one does: `python -m` would look into the current folder
# first, where the user may well have a `models` of their own.
PEAK_PROGRAM = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from fastffn_cli.engine.bench_peak import main
sys.exit(main(*sys.argv[2:]))
"""
KILLED = -9  # how Linux ends the process that takes the last memory


@dataclass(frozen=True)
class Speed:
    """One model's medians over the rounds, and its peak memory.

    The peak is of tensors on an accelerator; on a CPU it is the resident size of a whole process,
    Python and Paddle (about 0.3 GB) included.
    """

    tokens_per_s: float
    step_s: float
    peak_memory_bytes: int


@dataclass(frozen=True)
class Comparison:
    """What `bench` reports; `ratio` is dense seconds / stage-1 seconds, above 1 where it pays.

    `ratio` is the median of the rounds' ratios, `ratio_spread` their smallest and largest;
    `flops_ceiling` what the ratio would be if only the FLOPs of matrix products took time, all at
    one speed; a machine that is slow at just the dense shapes can exceed it.
    """

    stage1: Speed
    dense: Speed
    ratio: float
    ratio_spread: tuple[float, float]
    flops_ceiling: float
    rounds: int
    steps: int


class Arm:
    """One model with its optimizer, ready to be timed."""

    def __init__(self, config: Config, model_config: GPTConfig, device: Device) -> None:
        self.device = device
        self.model = build_model(model_config, config.Global.seed)
        self.model.train()
        self.precision, _ = choose_precision(config.Engine.mix_precision, device)
        self.precision.decorate(self.model)
        optimizer = AdamW(
            self.model, config.Optimizer, multi_precision=self.precision.multi_precision
        )
        self._step = TrainStep(
            CausalLM(self.model),
            optimizer,
            self.precision,
            micro_batch_size=config.Data.batch_size.micro_batch_size,
            grad_clip=config.Optimizer.grad_clip,
        )
        self._learning_rate = config.Optimizer.lr.max_lr

    def seconds(self, batches: Sequence[Batch]) -> float:
        """Train on `batches`, one update each, and return the mean seconds of an update."""
        self.device.synchronize()
        begun = time.perf_counter()
        for batch in batches:
            self._step(batch, self._learning_rate)
        self.device.synchronize()
        return (time.perf_counter() - begun) / len(batches)


def compare(
    config: Config,
    device: Device,
    *,
    steps: int,
    rounds: int,
    say: Callable[[str], None] = lambda line: None,
) -> Comparison:
    """Time the configured model against its dense counterpart.

    `say` is told about each phase and round. Raises `UserError` when the configuration is dense
    itself, `OutOfMemory` with the micro batch that should fit.
    """
    models = arm_models(config)
    say("peak memory: each model alone, in a process of its own")
    peaks = {name: measure_peak_apart(config, name, device) for name in ARMS}
    say(f"warm-up: {WARM_UP_STEPS} steps each")
    try:
        times = _time_rounds(config, models, device, steps=steps, rounds=rounds, say=say)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise advise_on_memory(config, device) from error
    ratios = [dense / stage1 for stage1, dense in zip(times["stage1"], times["dense"], strict=True)]
    tokens = _tokens_per_step(config)
    speeds = {}
    for name in ARMS:
        step_s = statistics.median(times[name])
        speeds[name] = Speed(tokens / step_s, step_s, peaks[name])
    return Comparison(
        stage1=speeds["stage1"],
        dense=speeds["dense"],
        ratio=statistics.median(ratios),
        ratio_spread=(min(ratios), max(ratios)),
        flops_ceiling=flops_ceiling(config),
        rounds=rounds,
        steps=steps,
    )


def arm_models(config: Config) -> dict[str, GPTConfig]:
    """Return the configured model as `stage1` and the same with ordinary FFNs as `dense`."""
    stage1 = gpt_config(config)
    if stage1.ffn["kind"] == "dense":
        raise UserError(
            "Model.ffn.kind is dense: there is no stage 1 to compare with it",
            hint="Type: -o Model.ffn.kind=low_rank",
        )
    return {"stage1": stage1, "dense": dense_counterpart(stage1)}


def flops_ceiling(config: Config) -> float:
    """FLOPs of the dense model over those of stage 1; the backward pass scales both by three."""
    models, length = arm_models(config), config.Data.dataset.max_seq_len
    return flops_per_token(models["dense"], length) / flops_per_token(models["stage1"], length)


def synthetic_batches(config: Config, count: int) -> list[Batch]:
    """Return `count` batches of the configured size with random ids, every position counted."""
    vocabulary = config.Model.vocab_size
    assert vocabulary is not None, "the command resolves Model.vocab_size"
    shape = (_batch_size(config), config.Data.dataset.max_seq_len + 1)
    random = np.random.RandomState(config.Global.seed % 2**32)
    batches = []
    for _ in range(count):
        ids = random.randint(0, vocabulary, shape).astype(np.int64)
        mask = np.ones((shape[0], shape[1] - 1), np.float32)
        batches.append(Batch(ids[:, :-1].copy(), ids[:, 1:].copy(), mask))
    return batches


def measure_peak(config: Config, arm: str, device: Device) -> int:
    """Return the peak bytes of building and training one model in this process."""
    device.reset_peak()
    Arm(config, arm_models(config)[arm], device).seconds(synthetic_batches(config, WARM_UP_STEPS))
    return device.peak_memory()


def measure_peak_apart(config: Config, arm: str, device: Device) -> int:
    """Run `measure_peak` in a fresh process; raises `OutOfMemory` when that runs out."""
    with tempfile.TemporaryDirectory(prefix="fastffn-bench-") as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(dump_config(config), encoding="utf-8")
        command = [sys.executable, "-c", PEAK_PROGRAM, json.dumps(sys.path)]
        done = subprocess.run(
            [*command, str(file), arm, device.name],
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=False,
        )
    if done.returncode in (EXIT_OUT_OF_MEMORY, KILLED):
        raise advise_on_memory(config, device)
    if done.returncode != 0:
        raise RuntimeError(f"measuring the memory of {arm} failed:\n{done.stderr.strip()}")
    return int(done.stdout.split()[-1])


def advise_on_memory(config: Config, device: Device) -> OutOfMemory:
    """Return the error that names the micro batch which should fit."""
    return advise(
        estimate_memory(
            gpt_config(config), config.Data.dataset.max_seq_len, on_host=device.type == "cpu"
        ),
        micro_batch_size=config.Data.batch_size.micro_batch_size,
        local_batch_size=_batch_size(config),
        free=device.free_memory(),
    )


def as_json(comparison: Comparison, config: Config, device: Device) -> dict[str, Any]:
    """Return the comparison as the JSON value of `bench --json`."""
    return {
        "stage1": vars(comparison.stage1),
        "dense": vars(comparison.dense),
        "ratio": comparison.ratio,
        "ratio_spread": list(comparison.ratio_spread),
        "flops_ceiling": comparison.flops_ceiling,
        "rounds": comparison.rounds,
        "steps": comparison.steps,
        "tokens_per_step": _tokens_per_step(config),
        "ffn": config.Model.ffn.model_dump(),
        "device": device.name,
        "precision": choose_precision(config.Engine.mix_precision, device)[0].describe(),
        "seed": config.Global.seed,
        "paddle": paddle.__version__,
    }


def _time_rounds(
    config: Config,
    models: dict[str, GPTConfig],
    device: Device,
    *,
    steps: int,
    rounds: int,
    say: Callable[[str], None],
) -> dict[str, list[float]]:
    arms = {name: Arm(config, models[name], device) for name in ARMS}
    batches = synthetic_batches(config, max(steps, WARM_UP_STEPS))
    for arm in arms.values():
        arm.seconds(batches[:WARM_UP_STEPS])
    times: dict[str, list[float]] = {name: [] for name in ARMS}
    for number in range(1, rounds + 1):
        for name, arm in arms.items():
            times[name].append(arm.seconds(batches[:steps]))
        stage1, dense = times["stage1"][-1], times["dense"][-1]
        say(
            f"round {number}/{rounds}: stage 1 {stage1:.4f} s/step, dense {dense:.4f} s/step, "
            f"ratio {dense / stage1:.3f}"
        )
    return times


def _batch_size(config: Config) -> int:
    size = config.Data.batch_size.local_batch_size
    assert size is not None, "load_config derives it"
    return int(size)


def _tokens_per_step(config: Config) -> int:
    return _batch_size(config) * config.Data.dataset.max_seq_len
