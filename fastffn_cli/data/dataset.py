"""Token files to batches: every token of an epoch predicted exactly once.

The tokens of a part (training, validation, test) are one stream: its documents in file order.
Sample k reads tokens k*S .. k*S+S and predicts the last S of them, so neighbours share one token
and what is left at the end makes one more sample, padded. The order of the samples is a pure
function of (seed, epoch), and what a batch holds one of (seed, cursor): resuming needs the cursor
and nothing else. An epoch shuffles its whole samples and ends with the padded one.

The loss mask is 0 where the *input* token is end-of-text, as FleetX does it: the first token of the
next document cannot be known from the last one, whereas predicting the end-of-text token is scored.
Attention and positions are not reset at document boundaries, also as in FleetX.

With FleetX's seed and files the first epoch is FleetX's, batch by batch (`fleetx/` of 2022: split,
samples, order by `RandomState(seed)`), and these are the differences:

* FleetX lays out all epochs of a run at once: samples run on from the last document of an epoch
  into the first of the next, all epochs are shuffled together, and the last one apart if less than
  80 % of it is needed. All this depends on `max_steps`. Here each epoch begins with a sample and is
  shuffled by itself, so that a longer run begins like a shorter one. Of two epochs in FleetX the
  first is still the same if the last is shuffled apart.
* FleetX drops what is left at the end of its last epoch; here the padded sample predicts it.
* FleetX shuffles the validation part, too, and reads on in it from one evaluation to the next; here
  every evaluation reads the same samples, in file order.
* FleetX trains on one file after the other; here all files of a folder are one stream.
* `ppfleetx/` (from March 2023) shuffles documents before it cuts samples, reads the first file only
  and masks nothing. Its parts hold the same documents.

B batch, S sequence length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastffn_cli.data.split import Span, divided_by, spans_of
from fastffn_cli.data.token_files import TokenFolder
from fastffn_cli.errors import DataError


@dataclass(frozen=True)
class Batch:
    """Inputs, the tokens to predict and their weight (0 or 1), each [B, S]."""

    tokens_BS: NDArray[np.int64]
    labels_BS: NDArray[np.int64]
    mask_BS: NDArray[np.float32]

    @property
    def num_valid(self) -> float:
        """Number of predictions that count."""
        return float(self.mask_BS.sum(dtype=np.float64))

    @property
    def size(self) -> int:
        """B."""
        return int(self.tokens_BS.shape[0])

    def slice(self, first: int, last: int) -> Batch:
        """Rows first..last-1, for micro batches."""
        return Batch(
            self.tokens_BS[first:last], self.labels_BS[first:last], self.mask_BS[first:last]
        )


class TokenDataset:
    """One part of a token folder as an endless, seekable stream of samples.

    Attributes: `part`, `seq_len`, `num_tokens`, `num_documents`, `num_samples` (of one epoch),
    `divided_by` ("documents" or "tokens": what the split divided), `eos_id` (None: no end-of-text
    mask). DataError if the part has fewer than two tokens.
    """

    def __init__(
        self,
        folder: TokenFolder,
        *,
        split: str | Sequence[float],
        part: str,
        seq_len: int,
        seed: int,
        shuffle: bool,
        eos_id: int | None = None,
    ) -> None:
        if seq_len < 1:
            raise ValueError(f"seq_len is {seq_len}, expected at least 1")
        spans = spans_of(folder, split, part)
        self.part = part
        self.seq_len = seq_len
        self.seed = seed
        self.shuffle = shuffle
        self.eos_id = folder.eos_id if eos_id is None else eos_id
        self.divided_by = divided_by(spans)
        self.num_documents = sum(span.documents for span in spans)
        self._spans = [span for span in spans if span.stop > span.start]
        # _offsets[i]: position in the stream of the first token of span i; the last one: its end.
        lengths = [span.stop - span.start for span in self._spans]
        self._offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
        self.num_tokens = int(self._offsets[-1])
        if self.num_tokens < 2:
            raise _too_few(folder, split, part, self.num_tokens)
        self.num_samples = -(-(self.num_tokens - 1) // seq_len)
        self._order: tuple[int, NDArray[np.int64]] | None = None

    def batch(self, cursor: int, size: int) -> Batch:
        """Samples cursor .. cursor+size-1 of the endless stream; the epochs follow each other."""
        if cursor < 0 or size < 1:
            raise ValueError(f"cursor {cursor} and size {size}: expected >= 0 and >= 1")
        pad = self.eos_id if self.eos_id is not None else 0
        rows_BT = np.full((size, self.seq_len + 1), pad, np.int64)
        filled_B = np.empty(size, np.int64)
        for row in range(size):
            epoch, position = divmod(cursor + row, self.num_samples)
            start = self._sample_at(epoch, position) * self.seq_len
            stop = min(start + self.seq_len + 1, self.num_tokens)
            self._read(start, rows_BT[row, : stop - start])
            filled_B[row] = stop - start
        tokens_BS, labels_BS = rows_BT[:, :-1].copy(), rows_BT[:, 1:].copy()
        # The label at s is stream token s+1, so it is real while s+1 < filled.
        mask_BS = (np.arange(1, self.seq_len + 1) < filled_B[:, None]).astype(np.float32)
        if self.eos_id is not None:
            mask_BS[tokens_BS == self.eos_id] = 0.0
        return Batch(tokens_BS, labels_BS, mask_BS)

    def _sample_at(self, epoch: int, position: int) -> int:
        """Which sample stands at a position of an epoch."""
        if not self.shuffle:
            return position
        order = self._order
        if order is None or order[0] != epoch:
            numbers = np.arange(self.num_samples, dtype=np.int64)
            whole = (self.num_tokens - 1) // self.seq_len
            np.random.RandomState((self.seed + epoch) % 2**32).shuffle(numbers[:whole])
            order = (epoch, numbers)
            self._order = order
        return int(order[1][position])

    def _read(self, start: int, out: NDArray[np.int64]) -> None:
        """Copy the stream's tokens from `start` on into `out`, across file boundaries."""
        index = int(np.searchsorted(self._offsets, start, side="right")) - 1
        done = 0
        while done < out.shape[0]:
            span: Span = self._spans[index]
            first = span.start + start + done - int(self._offsets[index])
            count = min(out.shape[0] - done, span.stop - first)
            out[done : done + count] = span.file.ids[first : first + count]
            done += count
            index += 1


def _too_few(
    folder: TokenFolder, split: str | Sequence[float], part: str, num_tokens: int
) -> DataError:
    """Say which part is empty, of what, and what to change."""
    shown = split if isinstance(split, str) else ",".join(str(weight) for weight in split)
    return DataError(
        f"{folder.path}: the {part} part of split {shown!r} has {num_tokens} token"
        f"{'' if num_tokens == 1 else 's'}, and a sample needs at least 2 (the folder has "
        f"{folder.num_tokens:,} tokens in {folder.num_documents:,} documents)",
        hint="give the part a larger weight, such as -o Data.dataset.split=90,5,5, or prepare "
        "more text",
    )
