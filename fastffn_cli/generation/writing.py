"""Generated text on its way to the user: streamed, block by block, or as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastffn_cli import ui
from fastffn_cli.generation.generate import Generation
from fastffn_cli.generation.prompts import Prompt
from fastffn_cli.generation.streaming import TextStream, continuation_text

if TYPE_CHECKING:
    from fastffn_cli.data.tokenizer import Tokenizer

# What would move the cursor or change a terminal's colours is shown as a sign; a file gets it raw.
_VISIBLE = {
    code: 0x2400 + code if code < 0x20 else 0x2421
    for code in (*range(0x20), 0x7F)
    if chr(code) not in "\t\n"
} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


class StreamWriter:
    """Writes the only sequence as it grows: the prompt, then each settled piece of text."""

    def __init__(self, prompt: Prompt, tokenizer: Tokenizer | None) -> None:
        self._prompt = prompt
        self._stream = TextStream(tokenizer, prompt.ids) if tokenizer is not None else None

    def begin(self) -> None:
        """Write the prompt."""
        write(self._prompt.text)

    def on_token(self, _prompt_index: int, _sequence_index: int, token: int) -> None:
        """Write what one more token settles."""
        write(self._stream.push(token) if self._stream is not None else f" {token}")

    def finish(self) -> None:
        """Write what was held back and end the line."""
        write((self._stream.finish() if self._stream is not None else "") + "\n")


def write_block(
    prompt: Prompt, generation: Generation, tokenizer: Tokenizer | None, eos_id: int | None
) -> None:
    """Write a finished sequence, prompt first; blocks are parted by an empty line."""
    if generation.prompt_index or generation.sequence_index:
        write("\n")
    tokens = without_eos(generation, eos_id)
    if tokenizer is None:
        write(" ".join([prompt.text, *map(str, tokens)]) + "\n")
    else:
        write(prompt.text + continuation_text(tokenizer, prompt.ids, tokens) + "\n")


def as_record(
    prompt: Prompt, generation: Generation, tokenizer: Tokenizer | None, eos_id: int | None
) -> dict[str, Any]:
    """Return the JSON form: `text` is the continuation alone, `tokens` the new ids with their end.

    `text` is None for a model without a tokenizer.
    """
    text = None
    if tokenizer is not None:
        text = continuation_text(tokenizer, prompt.ids, without_eos(generation, eos_id))
    return {
        "prompt": prompt.text,
        "text": text,
        "tokens": generation.tokens,
        "finish_reason": generation.finish_reason,
    }


def without_eos(generation: Generation, eos_id: int | None) -> Sequence[int]:
    """Return the new tokens that are text."""
    tokens = generation.tokens
    return tokens[:-1] if tokens and tokens[-1] == eos_id else tokens


def write(text: str) -> None:
    """Write text to stdout as it is; on a terminal, control characters become visible signs."""
    if text:
        ui.data(text.translate(_VISIBLE) if ui.out.is_terminal else text, end="")
