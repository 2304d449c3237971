"""What a monitor says of the episodes of an evaluation."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from daptq.json_model import Count, Fraction, JsonModel, NotNegative, Positive

__all__ = ["MonitorSummary", "MonitoredEpisode"]


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
    """What passed the candidate's perception-to-action interface, compared with nominal episodes.

    Attributes:
        policy: Name of the policy that was watched.
        observed: Module path that names the interface.
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
