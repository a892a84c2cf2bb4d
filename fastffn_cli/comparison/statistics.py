"""What can be said from a few seeds: spread, paired differences, time to a loss."""

from __future__ import annotations

import bisect
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95
MOST_SEEDS = 1000  # beyond which no number of seeds is named


@dataclass(frozen=True)
class Spread:
    """Mean of `count` values, their sample standard deviation, and the mean's standard error.

    Deviation and error are None for a single value, which tells nothing of its spread.
    """

    count: int
    mean: float
    deviation: float | None
    error: float | None


def spread(values: Sequence[float]) -> Spread:
    """Summarise at least one value; of paired values, hand in the differences.

    Raises `ValueError` for none.
    """
    if not values:
        raise ValueError("the spread of no values")
    mean = statistics.fmean(values)
    if len(values) == 1:
        return Spread(1, mean, None, None)
    deviation = statistics.stdev(values)
    return Spread(len(values), mean, deviation, deviation / math.sqrt(len(values)))


def margin(sample: Spread, comparisons: int = 1) -> float | None:
    """Half the width of the mean's two-sided confidence interval, None for a single value.

    Student's t at 95 %, divided among `comparisons` of them (Bonferroni), so that the chance of one
    wrong claim among all stays at 5 %.
    """
    if sample.error is None:
        return None
    return student_t(1 - (1 - CONFIDENCE) / comparisons / 2, sample.count - 1) * sample.error


def seeds_needed(sample: Spread, reference: float, comparisons: int = 1) -> int | None:
    """Seeds at which the mean would leave `reference` outside of its interval, as things stand.

    None where the spread is not known, or where more than 1000 would be needed.
    """
    if sample.deviation is None:
        return None
    distance, deviation = abs(sample.mean - reference), sample.deviation

    def settles(count: int) -> bool:
        larger = Spread(count, sample.mean, deviation, deviation / math.sqrt(count))
        noise = margin(larger, comparisons)
        return noise is not None and noise < distance

    counts = range(2, MOST_SEEDS + 1)
    # The margin only shrinks with the count.
    first = bisect.bisect_left(counts, True, key=settles)
    return counts[first] if first < len(counts) else None


def seconds_to_loss(curve: Sequence[tuple[float, float]], target: float) -> float | None:
    """Seconds at which a curve of (seconds, loss) first reaches `target`, None where it never does.

    Between two evaluations the curve is a straight line; losses that are no numbers are left out.
    Where already the first evaluation reaches it, its own seconds: it may have been earlier.
    """
    before: tuple[float, float] | None = None
    for seconds, loss in curve:
        if not math.isfinite(loss):
            continue
        if loss <= target:
            if before is None or before[1] == loss:
                return seconds
            way = (before[1] - target) / (before[1] - loss)
            return before[0] + way * (seconds - before[0])
        before = (seconds, loss)
    return None


def student_t(probability: float, freedom: int) -> float:
    """Quantile of Student's t distribution with `freedom` degrees of freedom, for 0.5 and above.

    Raises `ValueError` outside of 0.5 <= probability < 1 or below one degree of freedom.
    """
    if not 0.5 <= probability < 1 or freedom < 1:
        raise ValueError(f"no quantile at {probability} with {freedom} degrees of freedom")
    low, high = 0.0, 1.0
    while _t_distribution(high, freedom) < probability:
        high *= 2
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        if _t_distribution(middle, freedom) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _t_distribution(t: float, freedom: int) -> float:
    """Distribution function at t >= 0: finite sums, Abramowitz and Stegun 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine, sine = math.cos(angle), math.sin(angle)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = term if freedom > 1 else 0.0
    for index in range(2 + odd, freedom - 1, 2):
        term *= (index - 1) / index * cosine**2
        total += term
    inside = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return 0.5 + inside / 2
