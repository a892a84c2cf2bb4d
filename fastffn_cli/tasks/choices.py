"""What an evaluation reads and how long its windows are: asked for, configured, or as trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fastffn_cli.data.token_files import IDS_SUFFIX, INDEX_SUFFIX, LEGACY_SUFFIX
from fastffn_cli.data.tokenizer import Tokenizer
from fastffn_cli.errors import DataError, UserError
from fastffn_cli.tasks.evaluation import EvalRequest

if TYPE_CHECKING:
    from fastffn_cli.engine.checkpoint import LoadedModel


def choose_seq_len(loaded: LoadedModel, request: EvalRequest) -> int:
    """Tokens of a window; `UserError` for what the model has no positions for."""
    positions = loaded.model.config.max_position_embeddings
    trained = min(positions, loaded.config.Data.dataset.max_seq_len)
    seq_len = request.seq_len or loaded.config.Offline_Eval.max_seq_len or trained
    if not 2 <= seq_len <= positions:
        raise UserError(
            f"--seq-len {seq_len} must be 2 to {positions:,}: the model has {positions:,} positions"
        )
    return seq_len


def choose_batch_size(loaded: LoadedModel, request: EvalRequest) -> int:
    """Windows under way on the device at a time."""
    return request.batch_size or loaded.config.Offline_Eval.batch_size


def named_data(loaded: LoadedModel, request: EvalRequest) -> Path | None:
    """The path given on the command line, else `Offline_Eval.eval_path`, else None."""
    named = request.data or loaded.config.Offline_Eval.eval_path
    return Path(named).expanduser() if named is not None else None


def is_text(path: Path) -> bool:
    """Tell whether a path is a file of text, as opposed to token files or a folder of them."""
    token_files = (IDS_SUFFIX, INDEX_SUFFIX, LEGACY_SUFFIX)
    return path.is_file() and not path.name.endswith((*token_files, ".npy", ".npz"))


def text_tokenizer(loaded: LoadedModel, path: Path) -> Tokenizer:
    """The tokenizer of a model that is to read the text at `path`.

    Raises `UserError` where the checkpoint has none, `DataError` where it has ids beyond the model.
    """
    tokenizer = loaded.tokenizer
    if tokenizer is None:
        raise UserError(
            f"{loaded.path} has no tokenizer to read {path} with",
            hint="Put the model's tokenizer beside its weights when they are converted: "
            "fastffn convert ... --tokenizer SPEC",
        )
    vocabulary = loaded.model.config.vocab_size
    if tokenizer.vocab_size > vocabulary:
        raise DataError(
            f"the tokenizer in {loaded.path} has {tokenizer.vocab_size:,} ids, the model "
            f"{vocabulary:,}: they do not belong together"
        )
    return tokenizer


def refuse_options(request: EvalRequest, task: str, names: tuple[str, ...]) -> None:
    """Raise `UserError` for options that a task has no use for, all of them at once."""
    given = ", ".join(f"--{name}" for name in names if getattr(request, name) is not None)
    if given:
        raise UserError(
            f"{given}: --task {task} has no use for it",
            hint="Leave it out, or measure the whole text: --task lm",
        )
