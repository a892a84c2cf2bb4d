"""Where a long document may be cut without changing its tokens.

Tokenizers look at whole words: cutting between a letter and the blank after it gives the same
tokens as the whole text. Not every tokenizer keeps to that (some add a blank to the front of each
text), so each cut is proved on its surroundings: both sides encoded apart must give the tokens of
both encoded together.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice, product

from fastffn_cli.data.tokenizer import Tokenizer

# Candidates are proved with CONTEXT characters either side, and looked for near the end first, then
# farther from it (REACHES). TRIES of each pattern are proved before the next pattern.
CONTEXT = 96
REACHES = ((CONTEXT, 512), (512, 16384))
TRIES = 8
# A text without any good place is cut anyway when it is this long, so that memory stays bounded.
LONGEST_PIECE = 1 << 20

# Best first: after a word; after anything visible; where letters meet other signs (scripts without
# blanks).
PATTERNS = (
    re.compile(r"[^\W\d_](?=\s)"),
    re.compile(r"\S(?=\s)"),
    re.compile(r"\w(?=[^\w\s])|[^\w\s](?=\w)"),
)


class Cutter:
    """Finds cuts for one tokenizer; `forced` counts the cuts that could not be proved."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.forced = 0

    def __call__(self, text: str) -> int | None:
        """Give the position of the last good cut of `text`, or None to read on."""
        if self._tokenizer.is_bytes:
            return len(text)
        for (near, far), pattern in product(REACHES, PATTERNS):
            start, stop = max(CONTEXT, len(text) - far), max(0, len(text) - near)
            found = [match.end() for match in pattern.finditer(text, start, stop)]
            for position in islice(reversed(found), TRIES):
                if self._is_safe(text, position):
                    return position
        if len(text) >= LONGEST_PIECE:
            self.forced += 1
            return len(text)
        return None

    def split(self, text: str, size: int) -> Iterator[str]:
        """Yield `text` in slices of at most `size` characters, and whole from where none fits."""
        start = 0
        while len(text) - start > size:
            length = self(text[start : start + size])
            if length is None:
                break
            yield text[start : start + length]
            start += length
        yield text[start:]

    def _is_safe(self, text: str, position: int) -> bool:
        left = text[position - CONTEXT : position]
        right = text[position : position + CONTEXT]
        whole, first, second = self._tokenizer.encode_batch([left + right, left, right])
        return whole == first + second


def cut_anywhere(text: str) -> int:
    """Cut before the last blank: enough for training a tokenizer, which counts words."""
    position = max(text.rfind(" "), text.rfind("\n"))
    return position if position > 0 else len(text)


def cut_into(text: str, size: int) -> Iterator[str]:
    """Yield `text` in slices of at most `size` characters, cut before blanks."""
    start = 0
    while len(text) - start > size:
        stop = start + cut_anywhere(text[start : start + size])
        yield text[start:stop]
        start = stop
    yield text[start:]
