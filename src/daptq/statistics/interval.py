"""What an interval is: two limits that cover the truth with some confidence."""

from __future__ import annotations

from statistics import NormalDist
from typing import NamedTuple

from daptq.errors import InvalidInputError

__all__ = ["CONFIDENCE", "Interval", "normal_quantile", "require_confidence"]

CONFIDENCE = 0.95


class Interval(NamedTuple):
    """A confidence interval, ends included."""

    low: float
    high: float


def normal_quantile(confidence: float) -> float:
    """The z that a standard normal number exceeds in magnitude with probability 1 - confidence.

    Raises:
        InvalidInputError: The confidence is not between 0 and 1.
    """
    require_confidence(confidence)
    return NormalDist().inv_cdf(0.5 + confidence / 2.0)


def require_confidence(confidence: float) -> None:
    """Refuses what is no confidence.

    Raises:
        InvalidInputError: It is not between 0 and 1.
    """
    if not 0.0 < confidence < 1.0:
        raise InvalidInputError(f"confidence must be between 0 and 1, got {confidence}. 0.95 is customary.")
