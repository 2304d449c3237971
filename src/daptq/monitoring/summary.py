"""What a monitor says of the episodes of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from daptq.closed_loop.rollout import EpisodeRecord
from daptq.json_model import Count, Fraction, JsonModel, NotNegative, Positive
from daptq.monitoring.interface_reference import InterfaceReference
from daptq.monitoring.shift_detector import FALSE_ALARM_RATE, ShiftDetector

__all__ = ["MonitorSummary", "MonitoredEpisode", "monitor_summary"]


class MonitoredEpisode(JsonModel):
    """One watched episode.

    Attributes:
        index: Number of the episode.
        task: The task that was asked.
        score: How unusual the episode is.
        p_value: Share of normal episodes that are at least as unusual.
        statistic: Evidence of a shift after this episode.
        shifted: Whether a shift is flagged after this episode.
    """

    index: Count
    task: str
    score: NotNegative
    p_value: Fraction
    statistic: NotNegative
    shifted: bool


class MonitorSummary(JsonModel):
    """What passed the candidate's perception-to-action interfaces, compared with nominal episodes.

    Attributes:
        policy: Name of the policy that was watched.
        observed: Names of the interfaces, with commas.
        reference_episodes: Number of nominal episodes.
        false_alarm_rate: Largest probability of a flag within `horizon` episodes when nothing has changed.
        horizon: Number of episodes that were planned.
        threshold: Value of the statistic at which the flag is raised.
        flagged_at: Index of the episode after which the flag was raised; null without a flag.
        explanation: What was measured in that episode, else in the last one, in a sentence.
        episodes: Every watched episode.
    """

    policy: str
    observed: str
    reference_episodes: Positive
    false_alarm_rate: Fraction
    horizon: Positive
    threshold: NotNegative
    flagged_at: Count | None
    explanation: str
    episodes: Annotated[tuple[MonitoredEpisode, ...], Field(min_length=1)]


def monitor_summary(
    policy: str, reference: InterfaceReference, records: Sequence[EpisodeRecord], *, horizon: int, seed: int
) -> MonitorSummary:
    """What a monitor says of the episodes of an evaluation, taken in their order.

    Args:
        policy: Label of the policy that was watched.
        reference: What is normal.
        records: Its episodes, in their order, each with what passed the interface.
        horizon: Number of episodes that were planned; a flag among them is false with probability 5 % at most.
        seed: Seed of the numbers that break ties.
    """
    detector = ShiftDetector(reference, horizon=horizon, seed=seed)
    assessments = [detector.assess(record.interface) for record in records if record.interface is not None]
    pairs = list(zip(records, assessments, strict=True))
    flagged = next(((record.index, one) for record, one in pairs if one.shifted), None)
    return MonitorSummary(
        policy=policy,
        observed=reference.names,
        reference_episodes=reference.episodes,
        false_alarm_rate=FALSE_ALARM_RATE,
        horizon=horizon,
        threshold=detector.threshold,
        flagged_at=None if flagged is None else flagged[0],
        explanation=(assessments[-1] if flagged is None else flagged[1]).explanation,
        episodes=tuple(
            MonitoredEpisode(
                index=record.index,
                task=record.task,
                score=one.score,
                p_value=one.p_value,
                statistic=one.statistic,
                shifted=one.shifted,
            )
            for record, one in pairs
        ),
    )
