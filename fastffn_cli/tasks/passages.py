"""Passages of text whose last word is to be predicted: read, cut to a window, put into blocks.

As FleetX's `Lambada_Eval_Dataset` (strict form) has it, the last word is what follows the last
blank; the context is all before it, stripped; the word is encoded apart, with a blank in front.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastffn_cli.data.documents import Progress, read_passages
from fastffn_cli.data.inputs import SourceFile
from fastffn_cli.data.tokenizer import Tokenizer
from fastffn_cli.errors import DataError
from fastffn_cli.tasks.scoring import BLOCK_TOKENS

LENGTH_STEP = 32  # inputs are padded to multiples of it: few shapes, little padding


@dataclass(frozen=True)
class Passage:
    """Inputs [T], and the labels [L] of their last L positions: the last word."""

    tokens: NDArray[np.int64]
    labels: NDArray[np.int64]


class Passages:
    """The passages of a file, tokenized as they are asked for; at most `seq_len` inputs each.

    `count` have been read so far; of `cut` of them the context was too long.
    """

    def __init__(
        self, source: SourceFile, tokenizer: Tokenizer, *, json_key: str, seq_len: int
    ) -> None:
        self.count = self.cut = 0
        self._source, self._tokenizer = source, tokenizer
        self._json_key, self._seq_len = json_key, seq_len
        self._progress = Progress()

    def fraction(self) -> float:
        """How much of the file has been read."""
        return min(1.0, self._progress.bytes_read / max(1, self._source.size))

    def __iter__(self) -> Iterator[Passage]:
        """Yield the passages once; DataError names the line of one that cannot be scored."""
        lines = read_passages(self._source, json_key=self._json_key, progress=self._progress)
        for place, text in lines:
            context, label = self._tokenizer.encode_batch(split_last_word(place, text))
            if not context or not label:
                raise DataError(f"{place}: the tokenizer has no tokens for it")
            room = self._seq_len + 1 - len(label)
            if room < 1:
                raise DataError(
                    f"{place}: the last word is {len(label)} tokens and the window "
                    f"{self._seq_len}, which leaves no context",
                    hint="Widen the window, if the model has the positions: --seq-len N",
                )
            self.count += 1
            self.cut += len(context) > room
            tokens = [*context[-room:], *label[:-1]]
            yield Passage(np.array(tokens, np.int64), np.array(label, np.int64))


def split_last_word(place: str, text: str) -> tuple[str, str]:
    """Return the context and the last word with a blank in front; DataError for a single word."""
    word = text.split()[-1]
    context = text[: text.rfind(word)].strip()
    if not context:
        raise DataError(f"{place}: a single word, with nothing before it to predict it from")
    return context, " " + word


def blocks_of(passages: Iterable[Passage], seq_len: int) -> Iterator[list[Passage]]:
    """Group passages of the same padded length, as many as make `BLOCK_TOKENS` tokens.

    The groups follow from the passages alone, and hold back at most one block of each length.
    """
    waiting: dict[int, list[Passage]] = {}
    for passage in passages:
        length = padded_length(passage, seq_len)
        block = waiting.setdefault(length, [])
        block.append(passage)
        if len(block) == max(1, BLOCK_TOKENS // length):
            yield waiting.pop(length)
    yield from (waiting[length] for length in sorted(waiting))


def padded_length(passage: Passage, seq_len: int) -> int:
    """Inputs of a passage, rounded up to a multiple of `LENGTH_STEP`, at most `seq_len`."""
    return min(seq_len, -(-passage.tokens.size // LENGTH_STEP) * LENGTH_STEP)
