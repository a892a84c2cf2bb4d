"""From a growing row of token ids to text, never showing half a character.

A byte-level token may end inside a UTF-8 character; decoding then gives U+FFFD at the end, and the
next token turns it into the real one. Such an end is held back until it is settled.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

REPLACEMENT = "\ufffd"
# A character is at most four bytes: an unfinished one is at most three, so of a longer run of
# replacement signs only the last three can still change.
LONGEST_UNFINISHED = 3
# Tokens decoded again with each new one. Tokenizers that write blanks between words (not byte-level
# ones) need some context to know whether there is one in front of the next token.
CONTEXT = 8
REBASE_AT = 32


class Decodes(Protocol):
    """What is needed of a tokenizer."""

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Return the text of `ids`."""


class TextStream:
    """Turns token ids, one at a time, into pieces of text that join to the whole continuation."""

    def __init__(self, tokenizer: Decodes, context: Sequence[int] = ()) -> None:
        """Start behind the tokens of `context` (the prompt), which are not repeated."""
        self._tokenizer = tokenizer
        self._ids = list(context[-CONTEXT:])
        self._settled = len(self._stable(self._decoded()))

    def push(self, token: int) -> str:
        """Add a token; return the text that it settles, often one word, sometimes nothing."""
        self._ids.append(token)
        decoded = self._decoded()
        stable = self._stable(decoded)
        piece = stable[self._settled :]
        self._settled = max(self._settled, len(stable))
        if len(self._ids) >= REBASE_AT and stable == decoded:
            self._rebase()
        return piece

    def finish(self) -> str:
        """Return what was held back: a character that no token has completed."""
        decoded = self._decoded()
        piece = decoded[self._settled :]
        self._settled = len(decoded)
        return piece

    def _rebase(self) -> None:
        """Forget old tokens, at a place where their text ends in a whole character."""
        for kept in range(CONTEXT, REBASE_AT):
            tail = self._tokenizer.decode(self._ids[-kept:])
            if tail and not tail.startswith(REPLACEMENT):
                self._ids = self._ids[-kept:]
                self._settled = len(tail)
                return

    def _decoded(self) -> str:
        return self._tokenizer.decode(self._ids) if self._ids else ""

    @staticmethod
    def _stable(text: str) -> str:
        settled = text.rstrip(REPLACEMENT)
        return text[: max(len(settled), len(text) - LONGEST_UNFINISHED)]


def continuation_text(tokenizer: Decodes, prompt: Sequence[int], tokens: Iterable[int]) -> str:
    """Return the text of `tokens` behind `prompt`: what a `TextStream` gives, in one piece."""
    stream = TextStream(tokenizer, prompt)
    return "".join([*(stream.push(token) for token in tokens), stream.finish()])
