"""A number that was estimated from a sample, with the limits of its interval."""

from __future__ import annotations

from daptq.json_model import JsonModel

__all__ = ["Estimate"]


class Estimate(JsonModel):
    """A value with the limits of its 95 % interval.

    Attributes:
        value: The statistic of the sample.
        low: Lower limit.
        high: Upper limit.
    """

    value: float
    low: float
    high: float
