"""Loss, perplexity and bits per byte of a language model on a text or on token files.

For a .txt file the numbers are FleetX's (`LM_Eval_Dataset`, `run_eval.py`) on the same weights:
the text is one document, the end of the text is predicted too, and

    loss         = sum of -log p / (tokens - 1)
    ppl          = exp(min(20, loss))
    adjusted_ppl = exp(min(20, sum of -log p / (original_tokens - 1)))

where `original_tokens` counts the words before WikiText's detokenization. The reported `tokens` is
the divisor of the loss. (Of n tokens n - 1 are predicted, and the end of the text makes n terms of
the sum: FleetX's divisor is kept so that figures compare; on a real text it moves nothing that is
printed.) For .jsonl and token files the loss is the mean over all predictions, as in training.

    bits_per_byte = sum of -log p / ln 2 / UTF-8 bytes of the predicted text
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastffn_cli import ui
from fastffn_cli.data.inputs import find_inputs
from fastffn_cli.data.token_files import TokenFolder, open_tokens
from fastffn_cli.data.tokenizer import Tokenizer
from fastffn_cli.errors import DataError, Diverged, UserError
from fastffn_cli.tasks.causal_lm import perplexity
from fastffn_cli.tasks.choices import (
    choose_batch_size,
    choose_seq_len,
    is_text,
    named_data,
    text_tokenizer,
)
from fastffn_cli.tasks.eval_data import FolderData, TextData
from fastffn_cli.tasks.evaluation import EvalRequest, Evaluation
from fastffn_cli.tasks.progress import ScoreProgress
from fastffn_cli.tasks.scoring import Score, score_windows
from fastffn_cli.tasks.windows import cut_windows

if TYPE_CHECKING:
    from fastffn_cli.engine.checkpoint import LoadedModel

PARTS = ("train", "valid", "test", "all")


@dataclass(frozen=True)
class _Opened:
    """The data, what to call it, and how far its windows move on."""

    data: TextData | FolderData
    name: str
    part: str | None
    stride: int


def evaluate(loaded: LoadedModel, request: EvalRequest) -> Evaluation:
    """Measure a checkpoint.

    Without `request.data`: `Offline_Eval.eval_path` of its configuration, else the test part of the
    run's own data (the validation part where there is no test part). Raises `DataError` or
    `UserError` for data that cannot be scored, `Diverged` where the loss is not finite.
    """
    seq_len = choose_seq_len(loaded, request)
    opened = _open(loaded, request, seq_len)
    data = opened.data
    batch_size = choose_batch_size(loaded, request)
    windows = cut_windows(data.chunks(), seq_len=seq_len, stride=opened.stride, eos_id=data.eos_id)
    with ScoreProgress(lambda: (data.num_tokens, data.fraction())) as progress:
        score = score_windows(
            loaded.model,
            windows,
            batch_size=batch_size,
            on_progress=lambda score: progress.update(score.targets),
        )
    if isinstance(data, TextData) and data.detokenized and request.detokenize is None:
        ui.notice(
            f"{opened.name} looks like WikiText: its tokens were turned back into text "
            "(--no-detokenize scores it as it is)"
        )
    values = summarize(score, data, opened.name)
    values |= {
        "data": opened.name,
        "part": opened.part,
        "seq_len": seq_len,
        "overlap": opened.stride if opened.stride < seq_len else 0,
        "checkpoint": str(loaded.path),
        "step": loaded.step,
    }
    return Evaluation(values, _rows(values))


def summarize(score: Score, data: TextData | FolderData, name: str) -> dict[str, Any]:
    """Turn the sum over `data`, read to its end, into the reported numbers."""
    as_fleetx = isinstance(data, TextData) and data.is_text
    tokens = data.num_tokens - 1 if as_fleetx else score.targets
    if data.num_tokens < 2 or tokens < 1:
        raise DataError(
            f"{name}: {data.num_tokens} token{'' if data.num_tokens == 1 else 's'}, and there is "
            "something to predict only from the second on",
            hint="Name a longer text: fastffn eval --data FILE",
        )
    loss = score.nll / tokens
    if not math.isfinite(loss):
        raise Diverged(
            f"the loss on {name} is {loss}",
            hint="The weights are damaged or trained too far: take an earlier checkpoint",
        )
    values: dict[str, Any] = {
        "task": "lm",
        "loss": loss,
        "ppl": perplexity(loss),
        "bits_per_byte": None,
        "tokens": tokens,
    }
    if data.num_bytes:
        values["bits_per_byte"] = score.nll / math.log(2.0) / data.num_bytes
    words = data.original_tokens
    if words is not None:
        values["adjusted_ppl"] = perplexity(score.nll / (words - 1)) if words > 1 else None
        values["original_tokens"] = words
    return values


def _choose_stride(request: EvalRequest, configured: int | None, seq_len: int) -> int:
    """Tokens by which a window moves on; `configured` None means whole windows."""
    if request.overlap is None:
        return min(configured or seq_len, seq_len)
    if not 0 <= request.overlap <= seq_len:
        raise UserError(
            f"--overlap {request.overlap} must be 0 (none) to {seq_len}, the tokens of a window"
        )
    return request.overlap or seq_len


def _open(loaded: LoadedModel, request: EvalRequest, seq_len: int) -> _Opened:
    """Find out what the data is: token files or a text."""
    path = _choose_path(loaded, request)
    configured = loaded.config.Offline_Eval.overlapping_eval
    if is_text(path):
        if request.part is not None:
            raise UserError(f"--part {request.part} is for prepared folders, {path} is a text")
        text = _open_text(loaded, request, path)
        return _Opened(text, str(path), None, _choose_stride(request, configured, seq_len))
    if request.detokenize:
        raise UserError(f"--detokenize is for texts, {path} is not one")
    folder = open_tokens(path, vocab_size=loaded.model.config.vocab_size)
    data, part = _open_part(loaded, request, folder, _is_own(path, request))
    return _Opened(data, str(path), part, _choose_stride(request, None, seq_len))


def _choose_path(loaded: LoadedModel, request: EvalRequest) -> Path:
    named = named_data(loaded, request)
    if named is not None:
        return named
    own = _own_data(request)
    if own is None:
        raise UserError(
            f"{loaded.path} does not tell what it was trained on",
            hint="Name what to evaluate: fastffn eval --data FILE",
        )
    if not own.exists() and not list(own.parent.glob(own.name + "_*")):
        raise DataError(
            f"the data of the run is not there any more: {own}",
            hint="Name what to evaluate: fastffn eval --data FILE",
        )
    return own


def _own_data(request: EvalRequest) -> Path | None:
    recorded = request.trainer.get("data", {}).get("input_dir")
    return Path(recorded) if recorded else None


def _is_own(path: Path, request: EvalRequest) -> bool:
    own = _own_data(request)
    return own is not None and own.resolve() == path.resolve()


def _open_text(loaded: LoadedModel, request: EvalRequest, path: Path) -> TextData:
    tokenizer = text_tokenizer(loaded, path)
    inputs = find_inputs([path])
    for text in inputs.notices:
        ui.notice(text)
    return TextData(
        inputs.files[0], tokenizer, json_key=request.json_key, detokenize=request.detokenize
    )


def _open_part(
    loaded: LoadedModel, request: EvalRequest, folder: TokenFolder, own: bool
) -> tuple[FolderData, str]:
    """Open the part asked for; by default all of foreign data, the test part of the run's own."""
    tokenizer = loaded.tokenizer
    if tokenizer is None and folder.tokenizer_dir is not None:
        tokenizer = Tokenizer.load(folder.tokenizer_dir)
    wanted = request.part or ("test" if own else "all")
    if wanted not in PARTS:
        raise UserError(f"--part {wanted}: the parts are {', '.join(PARTS)}")

    def part(name: str) -> FolderData:
        return FolderData(
            folder,
            split=loaded.config.Data.dataset.split,
            part=name,
            eos_id=_choose_eos(loaded, request, folder),
            tokenizer=tokenizer,
        )

    data = part(wanted)
    if data.total < 2 and request.part is None and own:
        ui.notice(f"{folder.path} has no test part: evaluating the validation part")
        wanted, data = "valid", part("valid")
    if data.total < 2:
        raise DataError(
            f"{folder.path}: the {wanted} part has {data.total} tokens, at least 2 are needed",
            hint="Choose another with --part, or all of it with --part all",
        )
    return data, wanted


def _choose_eos(loaded: LoadedModel, request: EvalRequest, folder: TokenFolder) -> int | None:
    """The end-of-text token by the same rule as in training, then what else is known."""
    configured = loaded.config.Data.dataset.eos_id
    recorded = request.trainer.get("data", {}).get("eos_id")
    for known in (configured, folder.eos_id, recorded):
        if known is not None:
            return int(known)
    return loaded.tokenizer.eos_id if loaded.tokenizer is not None else None


def _rows(values: dict[str, Any]) -> list[tuple[str, str]]:
    """Lay the numbers out for people."""
    rows = [
        ("loss", f"{values['loss']:.6f}   nats per token"),
        ("perplexity", f"{values['ppl']:.6g}"),
    ]
    if values.get("adjusted_ppl") is not None:
        words = values["original_tokens"]
        rows.append(("adjusted ppl", f"{values['adjusted_ppl']:.6g}   per word, {words:,} words"))
    if values["bits_per_byte"] is not None:
        rows.append(("bits per byte", f"{values['bits_per_byte']:.6f}"))
    rows.append(("tokens", f"{values['tokens']:,}"))
    part = f", {values['part']} part" if values["part"] else ""
    rows.append(("data", f"{values['data']}{part}"))
    moved = f", moved on by {values['overlap']}" if values["overlap"] else ", one after the other"
    rows.append(("windows", f"{values['seq_len']} tokens{moved}"))
    rows.append(("checkpoint", f"{values['checkpoint']} (step {values['step']:,})"))
    return rows
