"""The interval of a success rate. The module does not know what a trial is: it sees counts."""

from __future__ import annotations

import math

from daptq.errors import InvalidInputError
from daptq.statistics.interval import CONFIDENCE, Interval, normal_quantile

__all__ = ["check_trials", "wilson_interval"]


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
    check_trials(n)
    if not 0 <= successes <= n:
        raise InvalidInputError(f"successes must be between 0 and n = {n}, got {successes}. Count each trial once.")
    z = normal_quantile(confidence)
    rate = successes / n
    shrink = 1.0 + z * z / n
    centre = (rate + z * z / (2 * n)) / shrink
    half = z / shrink * math.sqrt(rate * (1.0 - rate) / n + z * z / (4.0 * n * n))
    # At the ends the limit is 0 or 1 exactly; floating point would leave an error of 1e-17.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return Interval(low, high)


def check_trials(n: int) -> None:
    """Refuses a number of trials that has no rate.

    Raises:
        InvalidInputError: There is no trial.
    """
    if n < 1:
        raise InvalidInputError(f"n must be at least 1, got {n}. A rate needs at least one trial.")
