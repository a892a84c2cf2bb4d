"""Continue prompts with a model: prefill once, then one token a step for the whole batch.

Prompts of unequal length are padded on the left; the padding is masked and every sequence keeps
its own positions, so a sequence gets what it would get alone (up to the last bits of the matrix
products, whose order of summation depends on the batch).

B sequences, L padded prompt length, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import paddle
from numpy.typing import NDArray
from paddle import Tensor

from fastffn_cli.errors import DataError, UserError
from fastffn_cli.generation.sampling import SamplingOptions, pick_token, random_stream
from models.gpt import GPT, MASKED
from models.kv_cache import KVCache

FinishReason = Literal["eos", "length"]
OnToken = Callable[[int, int, int], None]  # prompt index, sequence index, token

CACHE_BYTES = 1 << 30  # keys and values of one batch may take this much ...
LARGEST_BATCH = 32  # ... and a batch has at most this many sequences
# Below what the model itself masks with: the row of a masked token attends to all such keys alike,
# and must not find padding among them.
PADDING = 2 * MASKED


@dataclass(frozen=True)
class Generation:
    """One finished continuation.

    `tokens` are the new ids; when `finish_reason` is "eos" the last of them is the end-of-text
    token. "length": `max_dec_len`, or the model's last position, was reached.
    """

    prompt_index: int
    sequence_index: int
    tokens: list[int]
    finish_reason: FinishReason


@dataclass
class _Sequence:
    """One sequence while it grows; `limit` is the most new tokens that it may get."""

    prompt_index: int
    sequence_index: int
    prompt: Sequence[int]
    limit: int
    random: np.random.Generator
    new: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None


def generate(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    options: SamplingOptions,
    *,
    eos_id: int | None = None,
    on_token: OnToken | None = None,
    use_cache: bool = True,
    num_tokens: int | None = None,
) -> list[Generation]:
    """Return `num_return_sequences` continuations of each prompt, in order.

    `on_token` is called with each new token as soon as it is known, end-of-text excepted.
    `num_tokens` restricts the vocabulary to its first ids (models often have more rows than their
    tokenizer has tokens). `use_cache=False` computes every step from the start: slow, for checks.
    Raises `UserError` or `DataError` for a prompt that the model cannot take.
    """
    return list(
        iterate_generations(
            model,
            prompts,
            options,
            eos_id=eos_id,
            on_token=on_token,
            use_cache=use_cache,
            num_tokens=num_tokens,
        )
    )


def iterate_generations(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    options: SamplingOptions,
    *,
    eos_id: int | None = None,
    on_token: OnToken | None = None,
    use_cache: bool = True,
    num_tokens: int | None = None,
) -> Iterator[Generation]:
    """Return what `generate` returns, each batch when it is finished; prompts are checked now."""
    vocabulary = min(num_tokens or model.config.vocab_size, model.config.vocab_size)
    for index, prompt in enumerate(prompts):
        check_prompt(prompt, vocabulary, model.config.max_position_embeddings, index)

    def batches() -> Iterator[Generation]:
        was_training = model.training
        model.eval()
        try:
            for group in _group(model, prompts, options):
                with paddle.no_grad():
                    _Batch(model, group, options, eos_id, use_cache, vocabulary).run(on_token)
                for each in group:
                    assert each.finish_reason is not None
                    yield Generation(
                        each.prompt_index, each.sequence_index, each.new, each.finish_reason
                    )
        finally:
            if was_training:
                model.train()

    return batches()


def check_prompt(prompt: Sequence[int], vocabulary: int, positions: int, index: int = 0) -> None:
    """Raise `UserError` or `DataError` for a prompt that is empty, too long or of other ids."""
    name = f"prompt {index + 1}"
    if not prompt:
        raise UserError(
            f"{name} is empty: there is nothing to continue",
            hint="Start from a word, or from the end-of-text token with --prompt-ids",
        )
    if len(prompt) > positions:
        raise UserError(
            f"{name} has {len(prompt):,} tokens; the model has {positions:,} positions",
            hint=f"Give at most its last {positions:,} tokens",
        )
    wrong = next((token for token in prompt if not 0 <= token < vocabulary), None)
    if wrong is not None:
        raise DataError(
            f"{name} has token id {wrong}; the model's ids are 0 to {vocabulary - 1:,}",
            hint="The prompt's ids come from another tokenizer than the model's",
        )


def _group(
    model: GPT, prompts: Sequence[Sequence[int]], options: SamplingOptions
) -> Iterator[list[_Sequence]]:
    """Cut all sequences, in order, into batches whose cache stays within its budget."""
    config = model.config
    token_bytes = 2 * 4 * config.num_layers * config.hidden_size
    group: list[_Sequence] = []
    longest = 0
    for prompt_index, prompt in enumerate(prompts):
        # Position p predicts token p + 1, so the last position still gives one more token.
        limit = min(options.max_dec_len, config.max_position_embeddings - len(prompt) + 1)
        for sequence_index in range(options.num_return_sequences):
            widened = max(longest, len(prompt) + limit)
            full = (len(group) + 1) * widened * token_bytes > CACHE_BYTES
            if group and (full or len(group) == LARGEST_BATCH):
                yield group
                group, widened = [], len(prompt) + limit
            longest = widened
            stream = random_stream(options.seed, prompt_index, sequence_index)
            group.append(_Sequence(prompt_index, sequence_index, prompt, limit, stream))
    if group:
        yield group


class _Batch:
    """The state of one batch: which sequences are alive, their cache and their padding."""

    def __init__(
        self,
        model: GPT,
        sequences: list[_Sequence],
        options: SamplingOptions,
        eos_id: int | None,
        use_cache: bool,
        vocabulary: int,
    ) -> None:
        self.model, self.options, self.eos_id = model, options, eos_id
        self.use_cache, self.vocabulary = use_cache, vocabulary
        self.alive = sequences
        self.width = max(len(each.prompt) for each in sequences)
        self.cache: KVCache | None = None

    def run(self, on_token: OnToken | None) -> None:
        """Let every sequence grow to its end."""
        logits_BV = self._prefill() if self.use_cache else self._recompute()
        while True:
            for each, logits_V in zip(self.alive, logits_BV, strict=True):
                self._grow(each, logits_V, on_token)
            kept = [row for row, each in enumerate(self.alive) if each.finish_reason is None]
            if not kept:
                return
            if len(kept) < len(self.alive):
                self.alive = [self.alive[row] for row in kept]
                if self.cache is not None:
                    self.cache.select(paddle.to_tensor(kept, dtype="int64"))
            logits_BV = self._advance() if self.use_cache else self._recompute()

    def _grow(
        self, each: _Sequence, logits_V: NDArray[np.float32], on_token: OnToken | None
    ) -> None:
        token = pick_token(
            logits_V,
            self.options,
            sequence=[*each.prompt, *each.new],
            num_new=len(each.new),
            eos_id=self.eos_id,
            uniform=each.random.random(),
        )
        each.new.append(token)
        if token == self.eos_id:
            each.finish_reason = "eos"
            return
        if on_token is not None:
            on_token(each.prompt_index, each.sequence_index, token)
        if len(each.new) >= each.limit:
            each.finish_reason = "length"

    def _prefill(self) -> NDArray[np.float32]:
        """Read the prompts, each one once however many continuations it gets: logits [B, V]."""
        first_rows: dict[int, int] = {}
        for each in self.alive:
            first_rows.setdefault(each.prompt_index, len(first_rows))
        unique = {each.prompt_index: each.prompt for each in self.alive}
        longest = max(each.limit for each in self.alive)
        self.cache = cache = self.model.new_cache(len(unique), self.width + longest)
        logits_UV = self._forward(list(unique.values()), self.width, cache)
        rows = [first_rows[each.prompt_index] for each in self.alive]
        if len(rows) > len(unique):
            cache.select(paddle.to_tensor(rows, dtype="int64"))
        return logits_UV[rows]

    def _recompute(self) -> NDArray[np.float32]:
        """Read everything from the start: logits [B, V]."""
        rows = [[*each.prompt, *each.new] for each in self.alive]
        return self._forward(rows, max(len(row) for row in rows), None)

    def _advance(self) -> NDArray[np.float32]:
        """Read the newest token of every sequence: logits [B, V]."""
        assert self.cache is not None
        tokens_B1 = np.array([[each.new[-1]] for each in self.alive], np.int64)
        positions_B1 = np.array(
            [[len(each.prompt) + len(each.new) - 1] for each in self.alive], np.int64
        )
        padding = [self.width - len(each.prompt) for each in self.alive]
        mask = _padding_mask(padding, self.cache.length + 1)
        x_B1D = self.model.hidden(
            paddle.to_tensor(tokens_B1), paddle.to_tensor(positions_B1), mask, self.cache
        )
        return self._last_logits(x_B1D)

    def _forward(
        self, rows: Sequence[Sequence[int]], width: int, cache: KVCache | None
    ) -> NDArray[np.float32]:
        """Read rows of unequal length, padded on the left to `width`."""
        tokens_BL = np.zeros((len(rows), width), np.int64)
        positions_BL = np.zeros((len(rows), width), np.int64)
        for index, row in enumerate(rows):
            tokens_BL[index, width - len(row) :] = row
            positions_BL[index, width - len(row) :] = np.arange(len(row))
        mask = _padding_mask([width - len(row) for row in rows], width)
        x_BLD = self.model.hidden(
            paddle.to_tensor(tokens_BL), paddle.to_tensor(positions_BL), mask, cache
        )
        return self._last_logits(x_BLD[:, -1:])

    def _last_logits(self, x_B1D: Tensor) -> NDArray[np.float32]:
        logits_BV = self.model.logits(x_B1D[:, 0]).astype("float32").numpy()
        return logits_BV[:, : self.vocabulary]


def _padding_mask(padding: Sequence[int], total: int) -> Tensor | None:
    """Return [B, 1, 1, total], hiding the first `padding` keys of each row; None if there are none.

    The padding's own rows are finite and never read.
    """
    if not any(padding):
        return None
    hidden_BS = np.arange(total)[None, :] < np.asarray(padding)[:, None]
    mask_BS = np.where(hidden_BS, np.float32(PADDING), np.float32(0.0))
    return paddle.to_tensor(mask_BS[:, None, None, :])
