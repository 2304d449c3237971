"""Two success rates over the same episodes: a test and an interval of their difference, and of a difference of two.

The module does not know what an episode is: it sees counts of pairs, and the outcome of each pair.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Int
from scipy.stats import binomtest

from daptq.errors import InvalidInputError
from daptq.statistics.interval import CONFIDENCE, Interval, normal_quantile, require_confidence
from daptq.statistics.proportion import check_trials

__all__ = ["check_pairs", "gap_interval", "mcnemar_exact", "paired_difference_interval"]


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Exact McNemar test: given the number of discordant pairs, each way is a fair coin (two-sided binomial p-value).

    Args:
        only_first: Pairs in which only the first of the two succeeded.
        only_second: Pairs in which only the second succeeded.

    Returns:
        p-value in (0, 1]; 1 without discordant pairs.

    Raises:
        InvalidInputError: A count is negative.
    """
    _check_discordant(only_first, only_second)
    n = only_first + only_second
    return float(binomtest(min(only_first, only_second), n).pvalue) if n else 1.0


def paired_difference_interval(only_first: int, only_second: int, n: int, confidence: float = CONFIDENCE) -> Interval:
    """Score interval of the difference of two paired proportions, first minus second (Tango 1998, Stat. Med. 17:891).

    The set of differences that the score test does not reject, where the nuisance parameter is estimated under each
    difference. Unlike the Wald interval it does not collapse to a point when no pair is discordant.

    Args:
        only_first: Pairs in which only the first of the two succeeded.
        only_second: Pairs in which only the second succeeded.
        n: Number of pairs, concordant ones included.
        confidence: Coverage aimed at, between 0 and 1.

    Returns:
        Limits of p_first - p_second, within [-1, 1].

    Raises:
        InvalidInputError: The counts are not those of n pairs, or the confidence is not between 0 and 1.
    """
    check_pairs(only_first, only_second, n, confidence)
    z = normal_quantile(confidence)
    low = -_tango_upper(only_second, only_first, n, z)
    return Interval(low, _tango_upper(only_first, only_second, n, z))


def gap_interval(
    first: Int[np.ndarray, " n"], second: Int[np.ndarray, " n"], confidence: float = CONFIDENCE
) -> Interval:
    """Interval of a difference of two paired differences, first minus second, over the same episodes.

    Recovers the variances of the two from their score intervals (l, u), and takes their correlation r from the episodes
    (MOVER; Zou 2008, Stat. Med. 27:5137, with the limits of `paired_difference_interval`):

        low = f - s - sqrt((f - l_f)^2 + (u_s - s)^2 - 2 r (f - l_f) (u_s - s))

    and likewise the upper limit. It does not collapse where no pair is discordant, as a bootstrap would.

    Args:
        first: int64 (n,) in {-1, 0, 1}, candidate minus baseline of every episode under one condition.
        second: int64 (n,), the same under the other condition, in the same order.
        confidence: Coverage aimed at, between 0 and 1.

    Returns:
        Limits of mean(first) - mean(second), within [-2, 2].

    Raises:
        InvalidInputError: There is no episode, the lengths differ, a value is not -1, 0 or 1, or the confidence is not
            between 0 and 1.
    """
    if len(first) != len(second):
        message = f"both conditions must have the same episodes, got {len(first)} and {len(second)}."
        raise InvalidInputError(message + " Run the same episodes under both.")
    if not (np.isin(first, (-1, 0, 1)).all() and np.isin(second, (-1, 0, 1)).all()):
        raise InvalidInputError("differences must be -1, 0 or 1, got others. Subtract one success from another.")
    one, other = (
        paired_difference_interval(int(np.sum(d == 1)), int(np.sum(d == -1)), len(d), confidence)
        for d in (first, second)
    )
    f, s = float(np.mean(first)), float(np.mean(second))
    varies = bool(np.ptp(first)) and bool(np.ptp(second))
    r = float(np.corrcoef(first, second)[0, 1]) if varies else 0.0

    def half(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a * a + b * b - 2.0 * r * a * b))

    return Interval(f - s - half(f - one.low, other.high - s), f - s + half(one.high - f, s - other.low))


def check_pairs(only_first: int, only_second: int, n: int, confidence: float) -> None:
    """Refuses counts that are not those of n pairs.

    Raises:
        InvalidInputError: They are not, or the confidence is not between 0 and 1.
    """
    check_trials(n)
    _check_discordant(only_first, only_second)
    if only_first + only_second > n:
        message = f"discordant pairs must be at most n = {n}, got {only_first} + {only_second}. Count each pair once."
        raise InvalidInputError(message)
    require_confidence(confidence)


def _tango_upper(b: int, c: int, n: int, z: float) -> float:
    """Largest difference d in [(b - c) / n, 1] with |T(d)| <= z, by bisection; T falls monotonically in d."""
    inside, outside = (b - c) / n, 1.0
    if inside == outside:
        return 1.0
    # Bisection ends when no float lies between the two ends: an interval of length 2 halves to that in < 1100 steps.
    while True:
        middle = (inside + outside) / 2.0
        if middle in (inside, outside):
            return inside
        if (b - c - n * middle) ** 2 <= z * z * _tango_variance(b, c, n, middle):
            inside = middle
        else:
            outside = middle


def _tango_variance(b: int, c: int, n: int, difference: float) -> float:
    """Variance of b - c under p_first - p_second = `difference`, with q = P(only second) at its constrained maximum."""
    linear = -b - c + (2 * n - b + c) * difference
    constant = -c * difference * (1.0 - difference)
    root = math.sqrt(max(0.0, linear * linear - 8 * n * constant))
    # The larger root of 2n q^2 + linear q + constant, in the form that does not cancel.
    q = (root - linear) / (4 * n) if linear <= 0 else -2 * constant / (linear + root)
    return n * (2.0 * q + difference * (1.0 - difference))


def _check_discordant(only_first: int, only_second: int) -> None:
    if only_first < 0 or only_second < 0:
        message = f"discordant counts must be at least 0, got {only_first} and {only_second}. Count pairs."
        raise InvalidInputError(message)
