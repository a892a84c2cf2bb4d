"""Which tokens belong to training, validation and test.

FleetX divides the documents of a file, in order, by three weights (`949,50,1`). On a corpus of few
documents that leaves a part empty (and FleetX hangs). Then, and only then, the file's tokens are
divided at the same fractions, so that one novel in one file trains and validates too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fastffn_cli.data.token_files import TokenFile, TokenFolder
from fastffn_cli.errors import DataError

PARTS = ("train", "valid", "test")
BY_DOCUMENTS = "documents"
BY_TOKENS = "tokens"


@dataclass(frozen=True)
class Span:
    """Tokens start..stop-1 of one file; `documents` counts the documents with tokens in it."""

    file: TokenFile
    start: int
    stop: int
    documents: int
    divided_by: str


def parse_split(split: str | Sequence[float]) -> tuple[float, float, float]:
    """Read `949,50,1`, `949/50/1` or a list as three weights; missing ones are 0, as in FleetX.

    DataError: not one to three non-negative numbers with a positive sum.
    """
    hint = "write three weights for training, validation and test, such as 949,50,1"
    try:
        pieces = split.replace("/", ",").split(",") if isinstance(split, str) else list(split)
        weights = [float(piece) for piece in pieces]
    except (TypeError, ValueError, AttributeError) as error:
        raise DataError(f"split {split!r} is not a list of weights", hint=hint) from error
    usable = all(math.isfinite(weight) and weight >= 0 for weight in weights)
    if not 1 <= len(weights) <= 3 or not usable or sum(weights) <= 0:
        raise DataError(f"split {split!r} is not three non-negative weights", hint=hint)
    first, second, third = (*weights, 0.0, 0.0)[:3]
    return first, second, third


def split_bounds(weights: Sequence[float], count: int) -> list[int]:
    """Give the four bounds of the three parts of `count` things, rounded exactly as FleetX does."""
    total = sum(weights)
    bounds = [0]
    for weight in weights:
        bounds.append(bounds[-1] + round(weight / total * float(count)))
    excess = bounds[-1] - count
    return [0, *(bound - excess for bound in bounds[1:])]


def spans_of(folder: TokenFolder, split: str | Sequence[float], part: str) -> list[Span]:
    """Give the spans of one part ("train", "valid", "test", or "all"), one a file, in file order.

    A span may be empty: when the weight is 0 or the file has too few tokens.
    """
    if part == "all":
        return [
            Span(file, 0, file.num_tokens, file.num_documents, BY_DOCUMENTS)
            for file in folder.files
        ]
    if part not in PARTS:
        raise ValueError(f"part is {part!r}, expected one of {', '.join(PARTS)}, all")
    weights = parse_split(split)
    return [_span_of(file, weights, PARTS.index(part)) for file in folder.files]


def _span_of(file: TokenFile, weights: Sequence[float], part: int) -> Span:
    documents = split_bounds(weights, file.num_documents)
    filled = all(
        documents[index] < documents[index + 1]
        for index, weight in enumerate(weights)
        if weight > 0
    )
    if filled:
        first, last = documents[part], documents[part + 1]
        start, stop = file.start_of(first), file.start_of(last)
        return Span(file, start, stop, last - first, BY_DOCUMENTS)
    tokens = split_bounds(weights, file.num_tokens)
    start, stop = tokens[part], tokens[part + 1]
    return Span(file, start, stop, _documents_between(file, start, stop), BY_TOKENS)


def _documents_between(file: TokenFile, start: int, stop: int) -> int:
    if start >= stop:
        return 0
    first, last = file.ends.searchsorted([start, stop - 1], side="right")
    return int(last - first) + 1


def divided_by(spans: Sequence[Span]) -> str:
    """Say how a folder was divided: "documents", "tokens", or "documents and tokens"."""
    return " and ".join(sorted({span.divided_by for span in spans}))
