"""Intervals and tests for success rates, alone and in pairs, and for drift measured in clusters.

Every rate that this library prints carries an interval from here. The module does not know what an episode is: it sees
counts, and values with the cluster (episode, or task) that each one came from.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from daptq.errors import InvalidInputError
from daptq.statistics.estimate import Estimate

CONFIDENCE = 0.95

# Turns samples along the last axis into one number each, all other axes at once.
Statistic = Callable[[Float[np.ndarray, "... n"]], Float[np.ndarray, "..."]]

# Numbers that are resampled at a time, 32 MiB of them.
_RESAMPLED_AT_ONCE = 2**22


class Interval(NamedTuple):
    """A confidence interval, ends included."""

    low: float
    high: float


def wilson_interval(successes: int, n: int, confidence: float = CONFIDENCE) -> Interval:
    """Wilson's score interval of a binomial proportion (Wilson 1927; Newcombe 1998, method 3).

    Args:
        successes: Number of successes.
        n: Number of trials, at least 1.
        confidence: Coverage aimed at, between 0 and 1.

    Returns:
        Lower and upper limit, within [0, 1].

    Raises:
        InvalidInputError: The counts are not those of n trials, or the confidence is not between 0 and 1.
    """
    _check_trials(n)
    if not 0 <= successes <= n:
        raise InvalidInputError(f"successes must be between 0 and n = {n}, got {successes}. Count each trial once.")
    z = _normal_quantile(confidence)
    rate = successes / n
    shrink = 1.0 + z * z / n
    centre = (rate + z * z / (2 * n)) / shrink
    half = z / shrink * math.sqrt(rate * (1.0 - rate) / n + z * z / (4.0 * n * n))
    # At the ends the limit is 0 or 1 exactly; floating point would leave 1e-17 beside it.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return Interval(low, high)


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
    # The binomial with probability 1/2 is symmetric, so doubling the smaller tail is the exact two-sided test.
    tail = sum(math.comb(n, k) for k in range(min(only_first, only_second) + 1))
    return float(min(Fraction(1), Fraction(2 * tail, 1 << n)))


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
    z = _normal_quantile(confidence)
    low = -_tango_upper(only_second, only_first, n, z)
    return Interval(low, _tango_upper(only_first, only_second, n, z))


def clustered_difference_interval(
    differences: Float[np.ndarray, " n"], clusters: Int[np.ndarray, " n"], confidence: float = CONFIDENCE
) -> Interval:
    """Interval of a mean difference when pairs of one cluster (task) resemble each other (Liang and Zeger 1986).

    With s_g the sum of (difference - mean) over cluster g, the mean's variance is G / (G - 1) sum_g s_g^2 / n^2, and
    the interval takes Student's t with G - 1 degrees of freedom. It speaks about tasks drawn like these ones, so with
    few tasks it is wide.

    Args:
        differences: float64 (n,), candidate minus baseline of every pair.
        clusters: int64 (n,), the cluster of every pair.
        confidence: Coverage aimed at, between 0 and 1.

    Returns:
        Limits of the mean difference.

    Raises:
        InvalidInputError: Fewer than two clusters, `clusters` is not as long as `differences`, or the confidence is
            not between 0 and 1.
    """
    _normal_quantile(confidence)  # Refuses a confidence out of range.
    if len(differences) != len(clusters):
        message = f"differences and clusters must be equally long, got {len(differences)} and {len(clusters)}."
        raise InvalidInputError(message + " Give every pair the cluster it came from.")
    names, numbers = np.unique(clusters, return_inverse=True)
    if len(names) < 2:
        message = f"clusters must be at least 2, got {len(names)}."
        raise InvalidInputError(message + " Take `paired_difference_interval` for the pairs of one task.")
    mean = float(np.mean(differences))
    sums = np.bincount(numbers, weights=differences - mean)
    scale = len(names) / (len(names) - 1)
    error = math.sqrt(scale * float(np.sum(np.square(sums)))) / len(differences)
    half = float(stats.t.ppf(0.5 + confidence / 2.0, len(names) - 1)) * error
    return Interval(mean - half, mean + half)


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
    _check_trials(n)
    _check_discordant(only_first, only_second)
    if only_first + only_second > n:
        message = f"discordant pairs must be at most n = {n}, got {only_first} + {only_second}. Count each pair once."
        raise InvalidInputError(message)
    _normal_quantile(confidence)


def bootstrap_interval(
    values: Float[np.ndarray, " n"],
    clusters: Int[np.ndarray, " n"],
    statistic: Statistic,
    *,
    seed: int,
    confidence: float = CONFIDENCE,
    resamples: int = 2000,
) -> Interval:
    """Percentile interval of a statistic under resampling of whole clusters: values of one episode stay together.

    Args:
        values: float64 (n,), the measured values.
        clusters: int64 (n,), the cluster (episode) of each value.
        statistic: Maps float64 (..., m) values to float64 (...), as `mean`, `median` and `root_mean_square` do.
        seed: Seed of the resampling; the same seed gives the same interval.
        confidence: Coverage aimed at, between 0 and 1.
        resamples: Number of bootstrap samples.

    Returns:
        The (1 - confidence) / 2 and (1 + confidence) / 2 quantiles of the resampled statistic. With one cluster both
        ends are the statistic itself: one episode says nothing of the spread between episodes.

    Raises:
        InvalidInputError: No values, or `clusters` is not as long as `values`.
    """
    if len(values) == 0 or len(values) != len(clusters):
        message = f"values and clusters must be non-empty and equally long, got {len(values)} and {len(clusters)}."
        raise InvalidInputError(message + " Give every value the cluster it came from.")
    groups = [values[clusters == cluster] for cluster in np.unique(clusters)]
    generator = np.random.default_rng(seed)
    picks = generator.integers(len(groups), size=(resamples, len(groups)))
    if len({len(group) for group in groups}) == 1:
        table = np.stack(groups)  # Clusters of one size, the usual case, are picked out of a table at once.
        rows = max(1, _RESAMPLED_AT_ONCE // table.size)
        parts = [picks[start : start + rows] for start in range(0, resamples, rows)]
        estimates = np.concatenate([statistic(table[part].reshape(len(part), -1)) for part in parts])
    else:
        estimates = np.array([statistic(np.concatenate([groups[index] for index in pick])) for pick in picks])
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(estimates, [tail, 1.0 - tail])
    return Interval(float(low), float(high))


def bootstrap_estimate(
    values: Float[np.ndarray, " n"], clusters: Int[np.ndarray, " n"], statistic: Statistic, *, seed: int
) -> Estimate:
    """A statistic with its interval; see `bootstrap_interval`."""
    low, high = bootstrap_interval(values, clusters, statistic, seed=seed)
    return Estimate(value=float(statistic(values)), low=low, high=high)


def mean(values: Float[np.ndarray, "... n"]) -> Float[np.ndarray, "..."]:
    """Mean over the last axis."""
    result: Float[np.ndarray, "..."] = np.mean(values, axis=-1)
    return result


def median(values: Float[np.ndarray, "... n"]) -> Float[np.ndarray, "..."]:
    """Median over the last axis."""
    result: Float[np.ndarray, "..."] = np.median(values, axis=-1)
    return result


def root_mean_square(values: Float[np.ndarray, "... n"]) -> Float[np.ndarray, "..."]:
    """Root of the mean of the squares over the last axis."""
    result: Float[np.ndarray, "..."] = np.sqrt(np.mean(np.square(values), axis=-1))
    return result


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


def _normal_quantile(confidence: float) -> float:
    if not 0.0 < confidence < 1.0:
        raise InvalidInputError(f"confidence must be between 0 and 1, got {confidence}. 0.95 is customary.")
    return NormalDist().inv_cdf(0.5 + confidence / 2.0)


def _check_trials(n: int) -> None:
    if n < 1:
        raise InvalidInputError(f"n must be at least 1, got {n}. A rate needs at least one trial.")


def _check_discordant(only_first: int, only_second: int) -> None:
    if only_first < 0 or only_second < 0:
        message = f"discordant counts must be at least 0, got {only_first} and {only_second}. Count pairs."
        raise InvalidInputError(message)
