"""`train:N`: a byte-level BPE of N ids, trained on the user's own text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from fastffn_cli import ui
from fastffn_cli.data.cutting import cut_anywhere, cut_into
from fastffn_cli.data.documents import Progress, read_pieces
from fastffn_cli.data.inputs import Inputs, find_inputs
from fastffn_cli.data.progress import ByteProgress
from fastffn_cli.data.tokenizer import Tokenizer
from fastffn_cli.errors import DataError

# The 256 bytes and the end-of-text token, which comes last, as in GPT-2.
SMALLEST = 257
# The word counts of the trainer grow with the text; this much text fixes the merges well enough.
TRAINING_BYTES = 1 << 29
# The library gathers 256 texts before it counts their words.
TEXT_CHARS = 1 << 14


def train_tokenizer(
    spec: str, inputs: Sequence[Path], *, json_key: str, eos_token: str
) -> Tokenizer:
    """Train the tokenizer of a spec `train:N` on the texts of `inputs`.

    N counts everything: 256 bytes, the merges and the end-of-text token. The same text gives the
    same tokenizer. From inputs beyond `TRAINING_BYTES` every k-th piece is used. DataError: N is no
    number or below 257, or there is no text.
    """
    wanted = _read_size(spec)
    sources = find_inputs(inputs)
    engine = tokenizers.Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=wanted - 1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[],
        show_progress=False,
    )
    texts = _TrainingTexts(sources, json_key)
    with ByteProgress("training the tokenizer", sources.size) as texts.bar:
        engine.train_from_iterator(iter(texts), trainer=trainer)
    if texts.used == 0:
        raise DataError("there is no text to train a tokenizer on: every document is empty")
    engine.add_special_tokens([AddedToken(eos_token, special=True, normalized=False)])
    tokenizer = Tokenizer(engine, name=f"bpe-{wanted}", eos_token=eos_token)
    if texts.stride > 1:
        ui.notice(f"the tokenizer was trained on one of every {texts.stride} pieces of the text")
    if tokenizer.vocab_size < wanted:
        ui.notice(
            f"the text gives a tokenizer of {tokenizer.vocab_size:,} ids only, not {wanted:,}: "
            "there is nothing more to merge"
        )
    return tokenizer


def _read_size(spec: str) -> int:
    number = spec.removeprefix("train:")
    if not (number.isascii() and number.isdigit()):
        raise DataError(
            f"tokenizer {spec!r}: {number!r} is not a number of ids", hint="write train:8000"
        )
    if int(number) < SMALLEST:
        raise DataError(
            f"tokenizer {spec!r}: at least {SMALLEST} ids are needed (256 bytes and the "
            "end-of-text token)",
            hint="write train:8000, or bytes for no merges at all",
        )
    return int(number)


class _TrainingTexts:
    """The pieces to count words in: every `stride`-th of the inputs."""

    def __init__(self, sources: Inputs, json_key: str) -> None:
        self._sources = sources
        self._json_key = json_key
        self.stride = max(1, -(-sources.size // TRAINING_BYTES))
        self.bar: ByteProgress | None = None
        self.used = 0

    def __iter__(self) -> Iterator[str]:
        number = done = 0
        for source in self._sources.files:
            progress = Progress()
            for piece in read_pieces(
                source, json_key=self._json_key, cut=cut_anywhere, progress=progress
            ):
                if number % self.stride == 0:
                    self.used += 1
                    yield from cut_into(piece.text, TEXT_CHARS)
                number += 1
                if self.bar is not None:
                    self.bar.update(done + progress.bytes_read)
            done += source.size
