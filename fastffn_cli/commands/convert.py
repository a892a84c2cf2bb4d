"""`fastffn convert`: factors to dense weights, with a proof."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from fastffn_cli import ui
from fastffn_cli.commands.options import DeviceOption, JsonOption


class Target(str, Enum):
    """Kinds of feed-forward layer to convert to."""

    DENSE = "dense"
    LOW_RANK = "low_rank"


class Precision(str, Enum):
    """Arithmetic of the comparison."""

    FLOAT32 = "float32"
    FLOAT64 = "float64"


def run(
    checkpoint: Annotated[
        Path | None,
        typer.Argument(
            metavar="CKPT",
            help="A checkpoint or run folder; without it, the newest one here that can be "
            "converted.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Where to write; RUN/dense-step-N by default."),
    ] = None,
    to: Annotated[Target, typer.Option("--to", help="Kind of feed-forward to make.")] = (
        Target.DENSE
    ),
    rank: Annotated[
        int, typer.Option("--rank", min=1, help="Rank for --to low_rank (truncated SVD).")
    ] = 8,
    tolerance: Annotated[
        float,
        typer.Option(
            "--tolerance",
            min=0.0,
            help="Largest max |logit difference|, over the largest |logit|, for --to dense.",
        ),
    ] = 1e-4,
    dtype: Annotated[
        Precision, typer.Option("--dtype", help="Arithmetic of the comparison.")
    ] = Precision.FLOAT32,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Merge low-rank factors into dense weights and verify the logits on real tokens.

    Exit code 5, and nothing written, when the merged model is not the same function.

    **Examples**

    `fastffn convert`

    `fastffn convert runs/demo/checkpoints/step-00000100 --out dense`

    `fastffn convert runs/demo-dense --to low_rank --rank 32`
    """
    from fastffn_cli.engine.device import use_device
    from fastffn_cli.engine.find import find_checkpoint

    path = find_checkpoint(
        checkpoint, low_rank=to is Target.DENSE, dense=to is not Target.DENSE, action="convert"
    )
    if checkpoint is None:
        ui.say(f"converting {path}")
    use_device(device or "auto")

    from fastffn_cli.engine.checkpoint import load_model
    from fastffn_cli.engine.conversion import convert_checkpoint, default_out_dir, refuse_existing
    from fastffn_cli.tasks.causal_lm import CausalLM

    out_dir = out or default_out_dir(path, to.value)
    refuse_existing(out_dir)
    spec = {"kind": to.value} if to is Target.DENSE else {"kind": to.value, "rank": rank}
    result = convert_checkpoint(
        load_model(path),
        spec,
        out_dir,
        CausalLM,
        tolerance=tolerance,
        dtype=dtype.value,
    )
    difference = result.difference
    if as_json:
        ui.data_json(
            {
                "out": str(result.out_dir),
                "parameters_before": result.parameters_before,
                "parameters_after": result.parameters_after,
                "max_logit_difference": difference.logits,
                "max_logit": difference.scale,
                "loss_difference": difference.loss,
                "tokens": difference.tokens,
                "layers": [
                    {"name": item.name, "relative_errors": list(item.errors)}
                    for item in result.replacements
                ],
            }
        )
    if result.replacements:
        rows = [
            (item.name, *(f"{error:.4f}" for error in item.errors)) for item in result.replacements
        ]
        ui.table(
            "relative error of each factored matrix (Frobenius)",
            ("layer", "linear1", "linear2"),
            rows,
            to_stdout=False,
        )
    ui.say(
        f"{path} -> {to.value}: {ui.number(result.parameters_before)} -> "
        f"{ui.number(result.parameters_after)} parameters"
    )
    verdict = f"ok (tolerance {tolerance:g})" if to is Target.DENSE else "an approximation"
    ui.say(
        f"check on {difference.tokens:,} tokens ({result.probe_source}): "
        f"max |logit difference| {difference.logits:.3e}, "
        f"loss difference {difference.loss:+.3e}: {verdict}"
    )
    ui.say(f"wrote {result.out_dir}")
    if to is Target.DENSE:
        ui.say(f"next: fastffn posttrain -c FILE --from {result.out_dir}")
