"""Two policies compared episode by episode: the difference of their success rates, and where just one succeeds."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from daptq.json_model import Count, Fraction, JsonModel, Percentage, Positive

__all__ = ["ByTask", "Discordant", "Paired", "Pairs"]


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
