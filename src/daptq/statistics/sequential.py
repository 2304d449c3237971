"""How many pairs are enough: a number before the first episode, and an interval that may be looked at after every one.

A pair's outcome is D = candidate's success - baseline's success, in {-1, 0, 1}. `anytime_interval` covers the mean of D
at all numbers of pairs at once, so an evaluation may stop as soon as the interval settles the question, and its error
still holds. `pairs_needed` counts for the fixed-size interval of `statistics.paired_difference_interval`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy import stats

from daptq.errors import InvalidInputError
from daptq.statistics.interval import CONFIDENCE, Interval
from daptq.statistics.paired_proportions import check_pairs, paired_difference_interval

POWER = 0.9
MOST_PAIRS = 1_000_000

# Parts of the capital that the bettors put at stake; each stakes the same part in every round, and they start equal.
_STAKES = (np.arange(64) + 0.5) / 64.0
_TOLERANCE = 1e-9
_TAIL = 1e-9


def anytime_interval(only_candidate: int, only_baseline: int, n: int, confidence: float = CONFIDENCE) -> Interval:
    """Interval of a paired difference that holds at every number of pairs simultaneously (a confidence sequence).

    Against the claim that the mean of D is at most d, bettors with stakes u in (0, 1) multiply their capital by
    1 + u ((D + 1) / (d + 1) - 1) after every pair. While the claim is true the mean capital is a nonnegative
    supermartingale, so it ever reaches 1 / a with probability at most a (Ville's inequality; Waudby-Smith and Ramdas
    2024, J. R. Stat. Soc. B 86:1). The lower limit is the largest d whose capital has reached 2 / (1 - confidence), the
    upper one the same for the roles exchanged. The capital depends on the counts only, not on their order.

    Args:
        only_candidate: Pairs in which only the candidate succeeded.
        only_baseline: Pairs in which only the baseline succeeded.
        n: Number of pairs so far, concordant ones included.
        confidence: Probability with which all intervals, for all n, cover the difference.

    Returns:
        Limits of p_candidate - p_baseline, within [-1, 1].

    Raises:
        InvalidInputError: The counts are not those of n pairs, or the confidence is not between 0 and 1.
    """
    check_pairs(only_candidate, only_baseline, n, confidence)
    needed = math.log(2.0 / (1.0 - confidence))
    low = _lower_limit(only_candidate, only_baseline, n, needed)
    return Interval(low, -_lower_limit(only_baseline, only_candidate, n, needed))


def pairs_needed(
    margin: float,
    discordant: float,
    *,
    difference: float = 0.0,
    power: float = POWER,
    confidence: float = CONFIDENCE,
) -> int:
    """Smallest number of pairs with which non-inferiority is shown with the stated probability.

    Non-inferior means that the lower limit of `paired_difference_interval` lies above -margin. Its probability is
    summed over all counts of discordant pairs, not approximated by a normal distribution.

    Args:
        margin: Largest loss of success that is accepted, a fraction in (0, 1).
        discordant: Probability that only one of the two succeeds, in [|difference|, 1].
        difference: True p_candidate - p_baseline, above -margin.
        power: Probability aimed at, in (0, 1).
        confidence: Confidence of the interval.

    Returns:
        Number of pairs n, such that `power` is reached at n, and not at n - 1.

    Raises:
        InvalidInputError: A value is out of range, or more than a million pairs are needed.
    """
    if not 0.0 < margin < 1.0:
        raise InvalidInputError(f"margin must be between 0 and 1, got {margin}. Five points of success are 0.05.")
    if not -margin < difference < 1.0:
        message = f"difference must be above -margin = {-margin}, got {difference}."
        raise InvalidInputError(message + " A policy that loses more than the margin is not non-inferior.")
    if not abs(difference) <= discordant <= 1.0:
        message = f"discordant must be between |difference| = {abs(difference)} and 1, got {discordant}."
        raise InvalidInputError(message + " Give the fraction of pairs in which only one policy succeeds.")
    if not 0.0 < power < 1.0:
        raise InvalidInputError(f"power must be between 0 and 1, got {power}. 0.9 is customary.")

    def enough(n: int) -> bool:
        return non_inferiority_power(n, margin, discordant, difference=difference, confidence=confidence) >= power

    upper = 1
    while not enough(upper):
        upper *= 2
        if upper > MOST_PAIRS:
            message = f"margin must be wide enough for {MOST_PAIRS} pairs, got {margin} at difference {difference}."
            raise InvalidInputError(message + " Accept a larger margin.")
    return _first(enough, upper // 2, upper)


def non_inferiority_power(
    n: int, margin: float, discordant: float, *, difference: float = 0.0, confidence: float = CONFIDENCE
) -> float:
    """Probability that n pairs show non-inferiority; arguments as in `pairs_needed`.

    Returns:
        Probability in [0, 1], exact but for counts of discordant pairs that come up less often than 1e-9.
    """
    counts = stats.binom(n, discordant)
    share = 0.5 if discordant == 0.0 else 0.5 + difference / (2.0 * discordant)
    first, last = int(counts.ppf(_TAIL)), int(counts.ppf(1.0 - _TAIL))
    total = 0.0
    for k in range(max(first, 0), last + 1):

        def shown(gained: int, k: int = k) -> bool:
            return paired_difference_interval(gained, k - gained, n, confidence).low > -margin

        if shown(k):
            least = 0 if shown(0) else _first(shown, 0, k)
            total += float(counts.pmf(k) * stats.binom.sf(least - 1, k, share))
    return min(total, 1.0)


def _lower_limit(gained: int, lost: int, n: int, needed: float) -> float:
    """Largest d, to 1e-9, against which the log capital is at least `needed`; the capital falls as d grows."""
    low, high = -1.0, 1.0
    while high - low > _TOLERANCE:
        middle = (low + high) / 2.0
        if _log_capital(gained, lost, n, middle) >= needed:
            low = middle
        else:
            high = middle
    return low


def _log_capital(gained: int, lost: int, n: int, null: float) -> float:
    """Logarithm of the mean capital of the bettors against "the mean of D is at most `null`"."""
    win = np.log1p(_STAKES * (2.0 / (1.0 + null) - 1.0))
    tie = np.log1p(_STAKES * (1.0 / (1.0 + null) - 1.0))
    loss = np.log1p(-_STAKES)
    capital = gained * win + (n - gained - lost) * tie + lost * loss
    largest = capital.max()
    return float(largest + np.log(np.mean(np.exp(capital - largest))))


def _first(holds: Callable[[int], bool], low: int, high: int) -> int:
    """Smallest integer in (low, high] at which `holds` is true; it is at `high`, not at `low`, and changes once."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
