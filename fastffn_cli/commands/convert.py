"""`fastffn convert`: factors to dense weights with a proof, and other systems' checkpoints."""

from __future__ import annotations

import shlex
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastffn_cli import ui
from fastffn_cli.commands.options import DeviceOption, JsonOption, OverrideOption
from fastffn_cli.config.complete import complete_config_name

if TYPE_CHECKING:
    from fastffn_cli.engine.conversion import Conversion
    from fastffn_cli.interop.transfer import Plan


class Target(str, Enum):
    """Kinds of feed-forward layer to convert to: dense, and what fits a trained dense layer."""

    DENSE = "dense"
    LOW_RANK = "low_rank"
    NARROW = "narrow"
    THIN = "thin"
    MONARCH = "monarch"
    BLOCK_DENSE = "block_dense"
    BLOCK_DIAGONAL = "block_diagonal"


class Precision(str, Enum):
    """Arithmetic of the comparison."""

    FLOAT32 = "float32"
    FLOAT64 = "float64"


def run(
    checkpoint: Annotated[
        Path | None,
        typer.Argument(
            metavar="CKPT",
            help="A checkpoint or run folder, or another system's checkpoint; without it, the "
            "newest one here that can be converted.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Where to write; RUN/dense-step-N by default, ./NAME-fastffn for other systems'.",
        ),
    ] = None,
    to: Annotated[Target, typer.Option("--to", help="Kind of feed-forward to make.")] = (
        Target.DENSE
    ),
    rank: Annotated[
        int | None,
        typer.Option(
            "--rank",
            min=1,
            help="Rank for --to low_rank (truncated SVD), thin and block_dense.",
            show_default="8",
        ),
    ] = None,
    width: Annotated[
        int | None,
        typer.Option(
            "--width",
            min=1,
            help="Hidden units for --to narrow and thin, those that matter most.",
            show_default="a quarter of hidden_size",
        ),
    ] = None,
    blocks: Annotated[
        int | None,
        typer.Option(
            "--blocks",
            min=1,
            help="Blocks for --to monarch, block_dense and block_diagonal.",
            show_default="4",
        ),
    ] = None,
    source_system: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="auto|native|fleetx|hf|mindspore",
            help="Whose checkpoint CKPT is; auto finds out by its content.",
            rich_help_panel="Other systems",
        ),
    ] = "auto",
    target_system: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="native|fleetx|hf|mindspore|mindformers",
            help="Whose checkpoint to write.",
            rich_help_panel="Other systems",
        ),
    ] = "native",
    tokenizer: Annotated[
        str | None,
        typer.Option(
            "--tokenizer",
            metavar="SPEC",
            help="Tokenizer to put beside the weights where they come without one: bytes, a "
            "tokenizer.json, or a folder.",
            rich_help_panel="Other systems",
        ),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(
            "--config",
            "-c",
            metavar="FILE",
            help="YAML of another system's checkpoint: what its files do not tell, such as the "
            "number of attention heads.",
            rich_help_panel="Other systems",
            autocompletion=complete_config_name,
        ),
    ] = None,
    override: OverrideOption = None,
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
    """Merge stage 1 into dense weights and verify the logits on real tokens.

    Exit code 5, and nothing written, when the merged model is not the same function. Reads and
    writes checkpoints of FleetX, Hugging Face and MindSpore as well; where the kind of feed-forward
    stays, values only change their places, tensor by tensor.

    **Examples**

    `fastffn convert`

    `fastffn convert runs/demo/checkpoints/step-00000100 --out dense`

    `fastffn convert runs/demo-dense --to low_rank --rank 32`

    `fastffn convert gpt2/ --out gpt2-fastffn`

    `fastffn convert GPT_345M/model.pdparams -c gpt_345m.yaml --format hf --out gpt-345m`
    """
    from fastffn_cli.engine.device import use_device
    from fastffn_cli.engine.interrupt import end_on_sigterm

    use_device(device or "auto")

    from fastffn_cli.interop.transfer import Wish, plan_transfer, run_transfer
    from fastffn_cli.tasks.causal_lm import CausalLM

    plan = plan_transfer(
        Wish(
            path=checkpoint,
            out_dir=out,
            kind=to.value,
            options={"rank": rank, "width": width, "blocks": blocks},
            source_system=source_system,
            target_system=target_system,
            config=config,
            overrides=override or (),
            tokenizer=tokenizer,
            tolerance=tolerance,
            dtype=dtype.value,
        )
    )
    for line in plan.warnings:
        ui.warn(line)
    for line in plan.remarks:
        ui.notice(line)
    with end_on_sigterm():
        outcome = run_transfer(plan, CausalLM)
    result = outcome.conversion
    for line in outcome.remarks:
        ui.notice(line)
    if as_json:
        values = {"out": str(plan.out_dir), "format": target_system}
        ui.data_json(values | (_values(result) if result else {}))
    if result is None:
        moved = f"{len(plan.source.weights())} tensors, every value as it was"
        ui.say(f"{plan.source.path} -> {target_system}: {moved}")
    else:
        _report(plan, result)
    ui.say(f"wrote {plan.out_dir}")
    if target_system == "native" and to is Target.DENSE:
        following = ["fastffn", "posttrain", "-c", "FILE", "--from", str(plan.out_dir)]
        ui.say(f"next: {shlex.join(following)}")


def _report(plan: Plan, result: Conversion) -> None:
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
    difference, wish = result.difference, plan.wish
    ui.say(
        f"{plan.source.path} -> {wish.kind}: {ui.number(result.parameters_before)} -> "
        f"{ui.number(result.parameters_after)} parameters"
    )
    exact = wish.kind == Target.DENSE.value
    verdict = f"ok (tolerance {wish.tolerance:g})" if exact else "an approximation"
    ui.say(
        f"check on {difference.tokens:,} tokens ({result.probe_source}): "
        f"max |logit difference| {difference.logits:.3e}, "
        f"loss difference {difference.loss:+.3e}: {verdict}"
    )


def _values(result: Conversion) -> dict[str, Any]:
    difference = result.difference
    return {
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
