"""`fastffn bench`: what stage 1 gains over dense on this machine."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Annotated

import typer

from fastffn_cli import ui
from fastffn_cli.commands.options import ConfigOption, DeviceOption, JsonOption, OverrideOption

if TYPE_CHECKING:
    from fastffn_cli.config.load import Resolved
    from fastffn_cli.config.schema import Config
    from fastffn_cli.engine.bench import Comparison


class Against(str, Enum):
    """What stage 1 can be compared with."""

    DENSE = "dense"


def run(
    config: ConfigOption,
    override: OverrideOption = None,
    against: Annotated[
        Against, typer.Option("--against", help="The model to compare stage 1 with.")
    ] = Against.DENSE,
    steps: Annotated[
        int, typer.Option("--steps", min=1, metavar="N", help="Training steps of a model a round.")
    ] = 3,
    rounds: Annotated[
        int, typer.Option("--rounds", min=1, metavar="N", help="Rounds; the median counts.")
    ] = 7,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Time stage 1 against its dense counterpart on this machine, interleaved.

    Times whole training steps on synthetic tokens (no data is needed): ratio above 1 means that
    stage 1 is faster. The ceiling is the ratio of the FLOPs of the matrix products.

    **Examples**

    `fastffn bench -c gpt-124m-fastffn -o Data.batch_size.micro_batch_size=1`

    `fastffn bench -c my.yaml -o Model.ffn.rank=32 --rounds 9 --json`
    """
    from fastffn_cli.config.load import load_config
    from fastffn_cli.engine.device import use_configured_device

    resolved = load_config(config, override or (), device=device)
    for warning in resolved.warnings:
        ui.warn(warning)
    place = use_configured_device(resolved.config)

    from fastffn_cli.engine import bench
    from fastffn_cli.engine.kernels import prepare_kernels
    from fastffn_cli.engine.precision import settle_precision

    settled = _with_vocabulary(resolved)
    _, ignored, plain = settle_precision(settled, place)
    if ignored:
        ui.warn(ignored)
    if plain:
        ui.notice(plain)
    missing = prepare_kernels(
        place,
        wanted=settled.Global.cpu_kernels,
        say=ui.say,
        low_rank_ffn=settled.Fused.low_rank_ffn,
    )
    if missing:
        ui.notice(missing)
    comparison = bench.compare(settled, place, steps=steps, rounds=rounds, say=ui.say)
    if as_json:
        ui.data_json(bench.as_json(comparison, settled, place))
        return
    batch = settled.Data.batch_size.local_batch_size
    title = f"{place.name}, {batch} sequences of {settled.Data.dataset.max_seq_len} tokens a step"
    _show(title, comparison, against.value)


def _with_vocabulary(resolved: Resolved) -> Config:
    """Fill in a vocabulary that the file leaves to the data."""
    config = resolved.config
    if config.Model.vocab_size is not None:
        return config
    if config.Data.dataset.input_dir is None:
        resolved.require("Model.vocab_size")
    from pathlib import Path

    from fastffn_cli.data.token_files import open_tokens

    vocab_size = open_tokens(Path(str(config.Data.dataset.input_dir))).vocab_size
    if vocab_size is None:
        resolved.require("Model.vocab_size")
    model = config.Model.model_copy(update={"vocab_size": vocab_size})
    return config.model_copy(update={"Model": model})


def _show(title: str, comparison: Comparison, other: str) -> None:
    rows = [
        (
            label,
            f"{speed.tokens_per_s:,.0f}",
            f"{speed.step_s:.4f}",
            ui.size(speed.peak_memory_bytes),
        )
        for label, speed in (("stage 1", comparison.stage1), (other, comparison.dense))
    ]
    ui.table(title, ("", "tokens/s", "s/step", "peak memory"), rows)
    low, high = comparison.ratio_spread
    ui.data(
        f"ratio {comparison.ratio:.3f} (median of {comparison.rounds} rounds, {low:.3f} to "
        f"{high:.3f}); FLOPs ceiling {comparison.flops_ceiling:.3f}"
    )
