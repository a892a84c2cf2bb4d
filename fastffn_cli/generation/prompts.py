"""Where prompts come from: the command line, a file, standard input, or token ids."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fastffn_cli.errors import DataError, UserError

if TYPE_CHECKING:
    from fastffn_cli.data.tokenizer import Tokenizer

STDIN = "-"


@dataclass(frozen=True)
class Prompt:
    """One prompt: the text to show and the ids to continue."""

    text: str
    ids: list[int]


def gather_texts(arguments: Sequence[str], file: str | None) -> list[str]:
    """Return the prompts of the command line, then those of the file, one a line.

    Without either, standard input is read when it is not a terminal. Blank lines are left out.
    Raises `UserError` when there is no prompt at all, `DataError` for a file that cannot be read.
    """
    texts = list(arguments)
    if file is not None:
        texts += _read_lines(file)
    elif not texts and sys.stdin is not None and not sys.stdin.isatty():
        texts += _read_lines(STDIN)
    if not texts:
        raise UserError(
            "there is no prompt",
            hint='Type: fastffn generate "Once upon a time", or --file FILE with one prompt a line',
        )
    return texts


def encode_prompts(texts: Sequence[str], tokenizer: Tokenizer) -> list[Prompt]:
    """Turn texts into ids; raises `UserError` for an empty prompt."""
    for number, text in enumerate(texts, start=1):
        if not text:
            raise UserError(
                f"prompt {number} is empty: there is nothing to continue",
                hint="To start a new document, give the end-of-text token: "
                f"--prompt-ids {tokenizer.eos_id}",
            )
    rows = tokenizer.encode_batch(list(texts))
    return [Prompt(text, ids) for text, ids in zip(texts, rows, strict=True)]


def parse_prompt_ids(rows: Sequence[str], tokenizer: Tokenizer | None) -> list[Prompt]:
    """Read `1 2 3` (or `1,2,3`); shown as text where there is a tokenizer, else as they are."""
    prompts = []
    for row in rows:
        words = row.replace(",", " ").split()
        wrong = next((word for word in words if not word.isascii() or not word.isdecimal()), None)
        if wrong is not None or not words:
            what = f"{wrong!r} is not a token id" if wrong is not None else "there is no id in it"
            raise UserError(
                f"--prompt-ids {row!r}: {what}", hint='Type whole numbers: --prompt-ids "1 2 3"'
            )
        ids = [int(word) for word in words]
        shown = tokenizer.decode(ids, skip_special=False) if tokenizer else " ".join(words)
        prompts.append(Prompt(shown, ids))
    return prompts


def _read_lines(file: str) -> list[str]:
    """Read a UTF-8 file, or standard input for `-`, as one prompt a line."""
    name = "standard input" if file == STDIN else file
    try:
        raw = sys.stdin.buffer.read() if file == STDIN else Path(file).expanduser().read_bytes()
    except OSError as error:
        raise DataError(f"{name}: {error.strerror}") from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise DataError(
            f"{name}:{line}: byte {error.start:,} is not UTF-8 text: {error.reason}"
        ) from error
    # Not splitlines(): it also cuts at form feeds and Unicode separators inside a prompt.
    lines = text.replace("\r\n", "\n").split("\n")
    prompts = [line for line in lines if line.strip()]
    if not prompts:
        raise UserError(f"{name} has no prompt in it", hint="Write one prompt a line")
    return prompts
