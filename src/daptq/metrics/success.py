"""Success rates of one policy, by the two rules for what counts as success, with Wilson's intervals."""

from __future__ import annotations

from daptq.json_model import Count, Fraction, JsonModel, Positive

__all__ = ["Rate", "Rates", "Success"]


class Rate(JsonModel):
    """A success rate with Wilson's 95 % interval, fractions.

    Attributes:
        n: Number of episodes.
        successes: How many of them count.
        success_rate: successes / n.
        low: Lower limit.
        high: Upper limit.
    """

    n: Positive
    successes: Count
    success_rate: Fraction
    low: Fraction
    high: Fraction


class Rates(Rate):
    """Success at any step of an episode.

    Attributes:
        at_last_step: The same where success counts after the last step only.
    """

    at_last_step: Rate


class Success(Rates):
    """Success of one policy over all episodes and per task.

    Attributes:
        other_task: Episodes in which a task of the scene was fulfilled that was not asked.
        per_task: The rates of each task.
    """

    other_task: Rate
    per_task: dict[str, Rates]
