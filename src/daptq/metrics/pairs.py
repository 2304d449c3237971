"""Two policies compared episode by episode: the difference of their success rates, and where just one succeeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from daptq.closed_loop.rollout import EpisodeRecord
from daptq.json_model import Count, Fraction, JsonModel, Percentage, Positive
from daptq.statistics.clustered import clustered_difference_interval
from daptq.statistics.paired_proportions import mcnemar_exact, paired_difference_interval

__all__ = ["ByTask", "Discordant", "Paired", "Pairs", "paired_summary"]


class ByTask(JsonModel):
    """Interval of the difference about tasks drawn like these, percentage points.

    Attributes:
        tasks: Number of tasks.
        low: Lower limit.
        high: Upper limit.
    """

    tasks: Annotated[int, Field(ge=2)]
    low: Percentage
    high: Percentage


class Pairs(JsonModel):
    """Pairs of episodes by one rule of success.

    Attributes:
        difference: Candidate minus baseline, percentage points.
        low: Lower limit of Tango's 95 % score interval.
        high: Upper limit.
        n: Number of pairs.
        both: Pairs in which both succeed.
        neither: Pairs in which neither does.
        only_candidate: Pairs in which only the candidate does.
        only_baseline: Pairs in which only the baseline does.
        mcnemar_p: p-value of the exact McNemar test.
        only_candidate_episodes: Indices of these episodes.
        only_baseline_episodes: Indices of these episodes.
        clustered_by_task: The interval about tasks like these; null for a single task.
    """

    difference: Percentage
    low: Percentage
    high: Percentage
    n: Positive
    both: Count
    neither: Count
    only_candidate: Count
    only_baseline: Count
    mcnemar_p: Fraction
    only_candidate_episodes: tuple[Count, ...]
    only_baseline_episodes: tuple[Count, ...]
    clustered_by_task: ByTask | None


class Discordant(JsonModel):
    """An episode in which just one of the two policies succeeds at any step.

    Attributes:
        index: Number of the episode.
        task: The task that was asked.
        seed: Seed of the episode.
        succeeds: The role of the policy that succeeds.
        first_success: Control steps that it took.
    """

    index: Count
    task: str
    seed: Count
    succeeds: Literal["baseline", "candidate"]
    first_success: Positive


class Paired(Pairs):
    """Success of a candidate against the baseline, where success counts at any step.

    Attributes:
        at_last_step: The same where success counts after the last step only.
        discordant: The episodes in which just one of the two succeeds at any step.
    """

    at_last_step: Pairs
    discordant: tuple[Discordant, ...]


def paired_summary(baseline: Sequence[EpisodeRecord], candidate: Sequence[EpisodeRecord]) -> Paired:
    """Compares two policies episode by episode.

    Args:
        baseline: Records of the policy compared with.
        candidate: Records of the other policy for the same episodes, in the same order.
    """
    pairs = list(zip(baseline, candidate, strict=True))
    any_step = _pairs(
        baseline, [one.success_any_step for one in baseline], [other.success_any_step for other in candidate]
    )
    last_step = _pairs(
        baseline, [one.success_last_step for one in baseline], [other.success_last_step for other in candidate]
    )
    discordant = [_discordant(*pair) for pair in pairs if pair[0].success_any_step != pair[1].success_any_step]
    return Paired(**dict(any_step), at_last_step=last_step, discordant=tuple(discordant))


def _discordant(baseline: EpisodeRecord, candidate: EpisodeRecord) -> Discordant:
    succeeds: Literal["baseline", "candidate"] = "baseline" if baseline.success_any_step else "candidate"
    record = baseline if succeeds == "baseline" else candidate
    assert record.first_success is not None
    return Discordant(
        index=record.index,
        task=record.task,
        seed=record.seed,
        succeeds=succeeds,
        first_success=record.first_success,
    )


def _pairs(records: Sequence[EpisodeRecord], baseline: Sequence[bool], candidate: Sequence[bool]) -> Pairs:
    """Compares outcomes; `records` tell which episode and task each pair is of."""
    pairs = list(zip(baseline, candidate, records, strict=True))
    gained = tuple(record.index for before, after, record in pairs if after and not before)
    lost = tuple(record.index for before, after, record in pairs if before and not after)
    both = sum(before and after for before, after, _ in pairs)
    low, high = paired_difference_interval(len(gained), len(lost), len(pairs))
    return Pairs(
        difference=100.0 * (len(gained) - len(lost)) / len(pairs),
        low=100.0 * low,
        high=100.0 * high,
        n=len(pairs),
        both=both,
        neither=len(pairs) - both - len(gained) - len(lost),
        only_candidate=len(gained),
        only_baseline=len(lost),
        mcnemar_p=mcnemar_exact(len(gained), len(lost)),
        only_candidate_episodes=gained,
        only_baseline_episodes=lost,
        clustered_by_task=_by_task([(int(after) - int(before), record.task) for before, after, record in pairs]),
    )


def _by_task(differences: Sequence[tuple[int, str]]) -> ByTask | None:
    """Interval of the mean difference, clustered by task; at each end the wider of it and the one that pools pairs.

    A spread between few tasks may come out too small by chance, down to 0, so it may only widen the interval (Angrist
    and Pischke 2009, "Mostly Harmless Econometrics", section 8.2).
    """
    values = np.array([value for value, _ in differences], dtype=np.float64)
    tasks, numbers = np.unique([task for _, task in differences], return_inverse=True)
    if len(tasks) < 2:
        return None
    pooled = paired_difference_interval(int((values > 0).sum()), int((values < 0).sum()), len(values))
    clustered = clustered_difference_interval(values, numbers)
    low, high = min(pooled.low, clustered.low), max(pooled.high, clustered.high)
    return ByTask(tasks=len(tasks), low=100.0 * max(low, -1.0), high=100.0 * min(high, 1.0))
