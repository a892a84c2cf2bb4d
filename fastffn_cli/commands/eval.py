"""`fastffn eval`: what a checkpoint is worth on a text, on token files or on LAMBADA."""

from __future__ import annotations

from typing import Annotated

import typer

from fastffn_cli import ui
from fastffn_cli.commands.options import CheckpointArgument, DeviceOption, JsonOption
from fastffn_cli.tasks.evaluation import EVALUATIONS


def run(
    checkpoint: CheckpointArgument = None,
    task: Annotated[
        str | None,
        typer.Option(
            "--task",
            metavar="|".join(EVALUATIONS),
            help="What to measure: lm, the loss on a text; cloze, how often the last word of a "
            "passage is known (LAMBADA). By default lm, or cloze where Offline_Eval.cloze_eval "
            "says so.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="F",
            help="A .txt or .jsonl (also .gz) or a prepared folder; without it, the test part of "
            "the run's own data. For cloze one passage a line.",
        ),
    ] = None,
    part: Annotated[
        str | None,
        typer.Option(
            "--part",
            "--split",
            metavar="train|valid|test|all",
            help="Part of a prepared folder; by default test of the run's own data, all of other "
            "data.",
        ),
    ] = None,
    overlap: Annotated[
        int | None,
        typer.Option(
            "--overlap",
            metavar="N",
            help="Tokens by which a window moves on, the rest of it being context; 0: windows do "
            "not overlap. By default Offline_Eval.overlapping_eval for texts, 0 for folders.",
        ),
    ] = None,
    seq_len: Annotated[
        int | None,
        typer.Option("--seq-len", metavar="N", help="Tokens of a window; by default as trained."),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size",
            metavar="N",
            min=1,
            help="Windows or passages under way at a time; the numbers do not depend on it.",
        ),
    ] = None,
    detokenize: Annotated[
        bool | None,
        typer.Option(
            "--detokenize/--no-detokenize",
            metavar="",
            show_default=False,
            help="Turn WikiText's tokens back into text first; by default where a .txt looks "
            "like WikiText.",
        ),
    ] = None,
    json_key: Annotated[
        str, typer.Option("--json-key", metavar="KEY", help="Key of the text in a .jsonl file.")
    ] = "text",
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a checkpoint: loss, perplexity and bits per byte, or how often it knows a last word.

    Twice the same number, whatever the batch size.

    **Examples**

    `fastffn eval`

    `fastffn eval runs/demo --data wiki.test.txt --json`

    `fastffn eval runs/demo/dense --data corpus/ --part valid`

    `fastffn eval runs/demo --task cloze --data lambada_test.jsonl`
    """
    from fastffn_cli.engine.checkpoint import Verification, load_model
    from fastffn_cli.engine.device import use_device
    from fastffn_cli.engine.find import find_checkpoint
    from fastffn_cli.tasks.evaluation import EvalRequest, check_task, choose_task, run_evaluation

    if task is not None:
        check_task(task)
    path = find_checkpoint(checkpoint, action="evaluate")
    verification = Verification(path)  # while paddle is imported
    use_device(device or "auto")

    loaded = load_model(path, verification)
    ui.say(f"evaluating {path} (step {loaded.step:,})")
    request = EvalRequest(
        data=data,
        part=part,
        overlap=overlap,
        seq_len=seq_len,
        batch_size=batch_size,
        detokenize=detokenize,
        json_key=json_key,
        trainer=loaded.trainer,
    )
    evaluation = run_evaluation(choose_task(task, loaded.config), loaded, request)
    if as_json:
        ui.data_json(evaluation.values)
    else:
        ui.card("fastffn eval", evaluation.rows, to_stdout=True)
