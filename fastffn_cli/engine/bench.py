"""Stage 1 against dense on this machine: the same training step, interleaved, as a ratio.

How steps are timed stands in `fastffn_cli.engine.timing`. Peak memory is measured apart, each model
alone in a process of its own: two models in one process cannot be told apart there.
"""

from __future__ import annotations

import statistics
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paddle

from fastffn_cli.config.dump import dump_config
from fastffn_cli.config.schema import Config
from fastffn_cli.engine.device import Device
from fastffn_cli.engine.memory import estimate_memory
from fastffn_cli.engine.model import dense_counterpart, gpt_config
from fastffn_cli.engine.out_of_memory import advise
from fastffn_cli.engine.own_process import KILLED, own_process
from fastffn_cli.engine.precision import settle_precision
from fastffn_cli.engine.timing import (
    WARM_UP_STEPS,
    Arm,
    batch_size,
    synthetic_batches,
    time_rounds,
)
from fastffn_cli.errors import EXIT_OUT_OF_MEMORY, OutOfMemory, UserError, is_out_of_memory
from models.gpt import GPTConfig, flops_per_token
from models.kernels import library

ARMS = ("stage1", "dense")
PEAK_STATEMENT = "from fastffn_cli.engine.bench_peak import main; sys.exit(main(*sys.argv[1:]))"


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
    tokens = config.Data.tokens_per_step
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
    """Return the configured model as `stage1`, and as `dense` the same with nothing cheaper."""
    stage1 = gpt_config(config)
    if config.Model.is_dense:
        raise UserError(
            "Model.ffn.kind is dense: there is no stage 1 to compare with it",
            hint="Type: -o Model.ffn.kind=low_rank",
        )
    return {"stage1": stage1, "dense": dense_counterpart(stage1)}


def flops_ceiling(config: Config) -> float:
    """FLOPs of the dense model over those of stage 1; the backward pass scales both by three."""
    models, length = arm_models(config), config.Data.dataset.max_seq_len
    return flops_per_token(models["dense"], length) / flops_per_token(models["stage1"], length)


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
        done = subprocess.run(
            own_process(PEAK_STATEMENT, str(file), arm, device.name),
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
            gpt_config(config),
            config.Data.dataset.max_seq_len,
            on_host=device.type == "cpu",
            fused=device.type == "cpu" and library.path() is not None,
        ),
        micro_batch_size=config.Data.batch_size.micro_batch_size,
        local_batch_size=batch_size(config),
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
        "tokens_per_step": config.Data.tokens_per_step,
        **config.Model.approximations,
        "device": device.name,
        "precision": settle_precision(config, device)[0].describe(),
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

    def show(times: Mapping[str, float]) -> str:
        stage1, dense = times["stage1"], times["dense"]
        return f"stage 1 {stage1:.4f} s/step, dense {dense:.4f} s/step, ratio {dense / stage1:.3f}"

    return time_rounds(
        arms, dict.fromkeys(ARMS, batches), steps=steps, rounds=rounds, say=say, show=show
    )
