"""Which token comes next: pure functions on the scores of one sequence.

They see one sequence at a time, [V], in float64 on the CPU, and draw by inverse CDF from a uniform
number that the caller brings. So a sequence depends on its own scores and seed, never on the other
sequences of the batch or on the device's random numbers.

Options and their order are FleetX's: repetition penalty and minimum length on the logits, then
temperature, top_k, top_p. As there, top_k keeps ties with the k-th token, and top_p is a share of
the WHOLE distribution, not of what top_k left (other programs renormalise in between and so cut
deeper).

V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fastffn_cli.errors import Diverged, UserError

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How tokens are picked; the names are those of the `Generation` section.

    `min_dec_len` and `max_dec_len` count new tokens, the closing end-of-text included. `top_k` 0
    and `top_p` 1 switch those filters off. Raises `UserError` for a value out of range.
    """

    decode_strategy: Literal["sampling", "greedy_search"] = "sampling"
    top_k: int = 0
    top_p: float = 1.0
    temperature: float = 1.0
    min_dec_len: int = 1
    max_dec_len: int = 200
    num_return_sequences: int = 1
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        checks = (
            (self.temperature > 0, "temperature", "above 0; --greedy takes the likeliest token"),
            (self.top_k >= 0, "top-k", "0 (off) or more"),
            (0 < self.top_p <= 1, "top-p", "above 0 and at most 1"),
            (self.max_dec_len >= 1, "max-tokens", "1 or more"),
            (self.min_dec_len >= 0, "min-tokens", "0 or more"),
            (self.num_return_sequences >= 1, "num-return-sequences", "1 or more"),
            (self.repetition_penalty > 0, "repetition-penalty", "above 0; 1 is off"),
            (self.seed >= 0, "seed", "0 or more"),
        )
        for valid, name, wanted in checks:
            if not valid:
                raise UserError(f"--{name} must be {wanted}")
        if self.min_dec_len > self.max_dec_len:
            raise UserError(
                f"--min-tokens {self.min_dec_len} is more than --max-tokens {self.max_dec_len}"
            )

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken each time."""
        return self.decode_strategy == "greedy_search"


def pick_token(
    logits_V: NDArray[Any],
    options: SamplingOptions,
    *,
    sequence: Sequence[int],
    num_new: int,
    eos_id: int | None,
    uniform: float,
) -> int:
    """Return the next token of one sequence.

    `sequence` is all of it so far, prompt included; `num_new` counts its new tokens; `uniform` is
    a random number in [0, 1), not looked at when greedy. Raises `Diverged` when no logit is finite.
    """
    scores_V = np.asarray(logits_V, dtype=np.float64)
    if not np.isfinite(scores_V.max()):
        raise Diverged(
            "the model's scores are not finite numbers, no token can be picked",
            hint="The weights are damaged or trained too far: take an earlier checkpoint",
        )
    scores_V = penalize_repetition(scores_V, sequence, options.repetition_penalty)
    if eos_id is not None and num_new < options.min_dec_len:
        scores_V = forbid(scores_V, eos_id)
    if options.greedy:
        return int(scores_V.argmax())
    probabilities_V = softmax(scores_V / options.temperature)
    probabilities_V = keep_top_k(probabilities_V, options.top_k)
    probabilities_V = keep_top_p(probabilities_V, options.top_p)
    return draw(probabilities_V, uniform)


def penalize_repetition(scores_V: Floats, sequence: Sequence[int], penalty: float) -> Floats:
    """Make the tokens of `sequence` less likely, once each: s / penalty, or s * penalty below 0.

    CTRL (Keskar et al. 2019, section 4.1) in the sign-aware form of FleetX.
    """
    if penalty == 1.0 or not sequence:
        return scores_V
    penalized_V = scores_V.copy()
    seen = np.unique(np.asarray(sequence, dtype=np.int64))
    scores = penalized_V[seen]
    penalized_V[seen] = np.where(scores < 0, scores * penalty, scores / penalty)
    return penalized_V


def forbid(scores_V: Floats, token: int) -> Floats:
    """Give one token no chance."""
    forbidden_V = scores_V.copy()
    forbidden_V[token] = -np.inf
    return forbidden_V


def softmax(scores_V: Floats) -> Floats:
    """Turn scores into probabilities."""
    exponentials_V = np.exp(scores_V - scores_V.max())
    return exponentials_V / exponentials_V.sum()


def keep_top_k(probabilities_V: Floats, k: int) -> Floats:
    """Zero all but the k likeliest tokens and those that tie with the k-th; 0 keeps all."""
    if k <= 0 or k >= probabilities_V.size:
        return probabilities_V
    threshold = np.partition(probabilities_V, -k)[-k]
    return np.where(probabilities_V >= threshold, probabilities_V, 0.0)


def keep_top_p(probabilities_V: Floats, p: float) -> Floats:
    """Zero the tokens behind those whose probabilities first exceed p; the likeliest one stays.

    A token stays when the sum of all likelier ones is at most p. The probabilities are taken as
    they come, so after `keep_top_k` they need not sum to 1 (see above).
    """
    if p >= 1.0:
        return probabilities_V
    tokens = np.flatnonzero(probabilities_V)
    order = tokens[np.argsort(-probabilities_V[tokens], kind="stable")]
    before = np.concatenate([[0.0], np.cumsum(probabilities_V[order])[:-1]])
    kept_V = np.zeros_like(probabilities_V)
    kept = order[before <= p]
    kept_V[kept] = probabilities_V[kept]
    return kept_V


def draw(probabilities_V: Floats, uniform: float) -> int:
    """Return the token at which the cumulative (unnormalised) probability passes `uniform`."""
    tokens = np.flatnonzero(probabilities_V)
    cumulative = np.cumsum(probabilities_V[tokens])
    place = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
    return int(tokens[min(place, tokens.size - 1)])


def random_stream(seed: int, prompt_index: int, sequence_index: int) -> np.random.Generator:
    """Return the random numbers of one sequence: a function of the seed and its two indices."""
    return np.random.default_rng([seed, prompt_index, sequence_index])
