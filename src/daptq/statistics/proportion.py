"""The interval of a success rate. The module does not know what a trial is: it sees counts."""

from __future__ import annotations

from scipy.stats import binomtest

from daptq.errors import InvalidInputError
from daptq.statistics.interval import CONFIDENCE, Interval, require_confidence

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
    require_confidence(confidence)
    limits = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return Interval(float(limits.low), float(limits.high))


def check_trials(n: int) -> None:
    """Refuses a number of trials that has no rate.

    Raises:
        InvalidInputError: There is no trial.
    """
    if n < 1:
        raise InvalidInputError(f"n must be at least 1, got {n}. A rate needs at least one trial.")
