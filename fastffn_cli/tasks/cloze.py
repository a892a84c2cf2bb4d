"""LAMBADA: how often a model knows the last word of a passage.

The numbers are FleetX's (`Lambada_Eval_Dataset` in its strict form, `run_eval.py`) on the same
weights: a passage counts as correct when the most likely token is the right one at every token of
its last word, each predicted from the true tokens before it.

    accuracy  = correct / examples
    loss      = sum of -log p / tokens of the last words
    ppl       = exp(min(20, loss))
    word_ppl  = exp(min(20, sum of -log p / examples))

`word_ppl` is what is usually published as the LAMBADA perplexity.

Where a passage is longer than the window, its beginning is cut off, as the end says most about the
last word, and the number of cut passages is reported. FleetX cuts off the end instead, and hangs
when the last word has more than one token; with windows that hold the passages (LAMBADA's have up
to 224 of GPT-2's tokens) there is no difference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import paddle
from paddle.nn import functional

from fastffn_cli import ui
from fastffn_cli.data.inputs import find_inputs
from fastffn_cli.errors import DataError, Diverged, UserError
from fastffn_cli.tasks.causal_lm import perplexity
from fastffn_cli.tasks.choices import (
    choose_batch_size,
    choose_seq_len,
    is_text,
    named_data,
    refuse_options,
    text_tokenizer,
)
from fastffn_cli.tasks.evaluation import EvalRequest, Evaluation
from fastffn_cli.tasks.passages import Passage, Passages, blocks_of, padded_length
from fastffn_cli.tasks.progress import ScoreProgress
from fastffn_cli.tasks.scoring import batches

if TYPE_CHECKING:
    from fastffn_cli.engine.checkpoint import LoadedModel
    from models.gpt import GPT

LOGITS = 1 << 24  # values of [rows, V] at a time: 64 MiB in float32


@dataclass(frozen=True)
class ClozeScore:
    """Sum of -log p over `targets` tokens of last words, in nats; `correct` of `examples` known."""

    nll: float = 0.0
    targets: int = 0
    examples: int = 0
    correct: int = 0


def evaluate(loaded: LoadedModel, request: EvalRequest) -> Evaluation:
    """Measure a checkpoint on passages: a .jsonl of one a record or a .txt of one a line.

    Raises `DataError` or `UserError` for data that cannot be scored, `Diverged` where the loss is
    not finite.
    """
    refuse_options(request, "cloze", ("part", "overlap", "detokenize"))
    seq_len = choose_seq_len(loaded, request)
    path = _find_text(loaded, request)
    tokenizer = text_tokenizer(loaded, path)
    inputs = find_inputs([path])
    if inputs.notices:  # of a named file, that its extension is unknown
        ui.notice(f"{path} is read as plain text, one passage a line")
    passages = Passages(inputs.files[0], tokenizer, json_key=request.json_key, seq_len=seq_len)
    with ScoreProgress(lambda: (passages.count, passages.fraction()), "passages") as progress:
        score = score_passages(
            loaded.model,
            passages,
            seq_len=seq_len,
            batch_size=choose_batch_size(loaded, request),
            on_progress=lambda score: progress.update(score.examples),
        )
    if passages.cut:
        ui.notice(
            f"{passages.cut:,} of {passages.count:,} passages are longer than the window of "
            f"{seq_len} tokens: they were scored without their beginning"
        )
    values = summarize(score, str(path))
    values |= {
        "cut": passages.cut,
        "data": str(path),
        "seq_len": seq_len,
        "checkpoint": str(loaded.path),
        "step": loaded.step,
    }
    return Evaluation(values, _rows(values))


def score_passages(
    model: GPT,
    passages: Iterable[Passage],
    *,
    seq_len: int,
    batch_size: int,
    on_progress: Callable[[ClozeScore], None] | None = None,
) -> ClozeScore:
    """Score the last words of all passages: the same numbers whatever the batch size."""
    model.eval()
    total = ClozeScore()
    with paddle.no_grad():
        for batch in batches(blocks_of(passages, seq_len), batch_size):
            under_way = [(_queue(model, block, seq_len), block) for block in batch]
            for parts, block in under_way:
                losses_N, hits_N = (np.concatenate([p.numpy() for p in part]) for part in parts)
                firsts = np.cumsum([0, *(passage.labels.size for passage in block[:-1])])
                total = ClozeScore(
                    total.nll + float(losses_N.sum(dtype=np.float64)),
                    total.targets + losses_N.size,
                    total.examples + len(block),
                    total.correct + int(np.logical_and.reduceat(hits_N, firsts).sum()),
                )
            if on_progress is not None:
                on_progress(total)
    return total


def summarize(score: ClozeScore, name: str) -> dict[str, Any]:
    """Turn the sums over a file into the reported numbers."""
    if not score.examples:
        raise DataError(f"{name}: no passage in it")
    loss = score.nll / score.targets
    if not math.isfinite(loss):
        raise Diverged(
            f"the loss on {name} is {loss}",
            hint="The weights are damaged or trained too far: take an earlier checkpoint",
        )
    return {
        "task": "cloze",
        "accuracy": score.correct / score.examples,
        "correct": score.correct,
        "examples": score.examples,
        "loss": loss,
        "ppl": perplexity(loss),
        "word_ppl": perplexity(score.nll / score.examples),
        "tokens": score.targets,
    }


def _find_text(loaded: LoadedModel, request: EvalRequest) -> Path:
    path = named_data(loaded, request)
    hint = "Name passages, one a line of a .txt or a record of a .jsonl: --data lambada.jsonl"
    if path is None:
        raise UserError("--task cloze does not know what to read", hint=hint)
    if not path.exists():
        raise DataError(f"{path}: there is no such file", hint=hint)
    if not is_text(path):
        raise DataError(f"{path} is no text, and --task cloze reads passages", hint=hint)
    return path


def _queue(
    model: GPT, block: list[Passage], seq_len: int
) -> tuple[list[paddle.Tensor], list[paddle.Tensor]]:
    """Queue a block on the device; losses and hits of its label positions, in parts of [rows]."""
    length = padded_length(block[0], seq_len)
    # What pads a passage stands behind it, where no label looks.
    tokens_BS = np.zeros((len(block), length), np.int64)
    rows = []
    for row, passage in enumerate(block):
        size = passage.tokens.size
        tokens_BS[row, :size] = passage.tokens
        rows.append(row * length + np.arange(size - passage.labels.size, size))
    x_BSD = model.hidden(paddle.to_tensor(tokens_BS))
    x_MD = x_BSD.reshape([-1, x_BSD.shape[-1]])
    x_ND = paddle.index_select(x_MD, paddle.to_tensor(np.concatenate(rows)))
    labels_N = paddle.to_tensor(np.concatenate([passage.labels for passage in block]))
    losses, hits = [], []
    size = max(1, LOGITS // model.config.vocab_size)
    for start in range(0, x_ND.shape[0], size):
        part_N = labels_N[start : start + size]
        logits_NV = model.logits(x_ND[start : start + size]).astype("float32")
        losses.append(functional.cross_entropy(logits_NV, part_N, reduction="none").reshape([-1]))
        hits.append(paddle.argmax(logits_NV, axis=-1) == part_N)
    return losses, hits


def _rows(values: dict[str, Any]) -> list[tuple[str, str]]:
    """Lay the numbers out for people."""
    correct, examples = values["correct"], values["examples"]
    cut = f", {values['cut']:,} passages cut" if values["cut"] else ""
    return [
        ("accuracy", f"{100 * values['accuracy']:.2f} %   {correct:,} of {examples:,} last words"),
        ("loss", f"{values['loss']:.6f}   nats per token"),
        ("perplexity", f"{values['ppl']:.6g}   per token"),
        ("word ppl", f"{values['word_ppl']:.6g}   per last word"),
        ("tokens", f"{values['tokens']:,}"),
        ("data", values["data"]),
        ("windows", f"at most {values['seq_len']} tokens{cut}"),
        ("checkpoint", f"{values['checkpoint']} (step {values['step']:,})"),
    ]
