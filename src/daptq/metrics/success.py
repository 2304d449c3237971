"""Success rates of one policy, by the two rules for what counts as success, with Wilson's intervals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from daptq.closed_loop.rollout import EpisodeRecord
from daptq.json_model import Count, Fraction, JsonModel, Positive
from daptq.statistics.proportion import wilson_interval

__all__ = ["Rate", "Rates", "Success", "success_summary"]


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


def success_summary(records: Sequence[EpisodeRecord]) -> Success:
    """Success of one policy over all episodes and per task.

    Args:
        records: The policy's records, at least one, in episode order.
    """
    tasks = dict.fromkeys(record.task for record in records)
    return Success(
        **dict(_rates(records)),
        other_task=_rate(bool(record.other_tasks) for record in records),
        per_task={task: _rates([record for record in records if record.task == task]) for task in tasks},
    )


def _rates(records: Sequence[EpisodeRecord]) -> Rates:
    any_step = _rate(record.success_any_step for record in records)
    return Rates(**dict(any_step), at_last_step=_rate(record.success_last_step for record in records))


def _rate(outcomes: Iterable[bool]) -> Rate:
    listed = list(outcomes)
    successes, n = sum(listed), len(listed)
    low, high = wilson_interval(successes, n)
    return Rate(n=n, successes=successes, success_rate=successes / n, low=low, high=high)
