"""After every watched episode: has what passes the interface shifted from what is normal?

The false-alarm rate is a guarantee for episodes whose initial states are drawn at random, see
`daptq.statistics.change_detector`; those of a fixed list taken in turn are no such sample. The module does not know
where the readings come from: from a policy that runs now, or from the records of an evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from daptq.closed_loop.interface_stream import Reading
from daptq.closed_loop.rollout import EpisodeRecord
from daptq.monitoring.interface_reference import InterfaceReference
from daptq.statistics.change_detector import ChangeDetector

__all__ = ["Assessment", "ShiftDetector", "monitor_summary"]

FALSE_ALARM_RATE = 0.05


@dataclass(frozen=True, kw_only=True)
class Assessment:
    """What is known after an episode.

    Attributes:
        episode: Number of the episode among those that were assessed, from 0.
        instruction: What the policy was told.
        score: How unusual the episode is.
        p_value: Share of normal episodes at least as unusual; uniform when nothing has changed.
        statistic: Evidence of a shift so far; the flag is raised at `threshold`.
        threshold: See above.
        shifted: Whether a shift is flagged; it stays so until a restart.
        explanation: What was measured, in a sentence.
    """

    episode: int
    instruction: str
    score: float
    p_value: float
    statistic: float
    threshold: float
    shifted: bool
    explanation: str


class ShiftDetector:
    """Assesses episodes in their order.

    Args:
        reference: What is normal.
        false_alarm_rate: Largest probability of a flag within `horizon` episodes when nothing has changed.
        horizon: Number of episodes that the rate is about.
        seed: Seed of the numbers that break ties between scores.

    Attributes:
        assessments: One per assessed episode, in order.
        shifted: Whether a shift is flagged.

    Raises:
        InvalidInputError: A setting is not usable.
    """

    def __init__(
        self, reference: InterfaceReference, *, false_alarm_rate: float = FALSE_ALARM_RATE, horizon: int, seed: int = 0
    ) -> None:
        self.assessments: list[Assessment] = []
        self.shifted = False
        self._reference = reference
        self._detector = ChangeDetector(reference.scores, false_alarm_rate=false_alarm_rate, horizon=horizon, seed=seed)

    @property
    def threshold(self) -> float:
        """Value of the statistic at which the flag is raised."""
        return self._detector.threshold

    def assess(self, reading: Reading) -> Assessment:
        """Takes in the next episode."""
        p_value = self._detector.update(reading.score, reading.instruction)
        self.shifted = self.shifted or self._detector.alarm
        self.assessments.append(
            Assessment(
                episode=len(self.assessments),
                instruction=reading.instruction,
                score=reading.score,
                p_value=p_value,
                statistic=self._detector.statistic,
                threshold=self.threshold,
                shifted=self.shifted,
                explanation=self._explain(reading, p_value),
            )
        )
        return self.assessments[-1]

    def _explain(self, reading: Reading, p_value: float) -> str:
        usual = float(np.median(self._reference.scores[reading.instruction]))
        return (
            f"{'shift' if self.shifted else 'no shift'} at {self._reference.observed}: statistic "
            f"{self._detector.statistic:.3g} of {self.threshold:g}; this episode scores {reading.score:.3g}, usual is "
            f"{usual:.3g} (p = {p_value:.3g}); channel {reading.channel} moved most, by {reading.moved:+.1f} standard "
            "deviations of an episode's mean"
        )

    def restart(self) -> None:
        """Lowers the flag and forgets the evidence so far."""
        self._detector.restart()
        self.shifted = False


def monitor_summary(
    policy: str, reference: InterfaceReference, records: Sequence[EpisodeRecord], *, horizon: int, seed: int
) -> dict[str, Any]:
    """What a monitor says of the episodes of an evaluation, taken in their order.

    Args:
        policy: Label of the policy that was watched.
        reference: What is normal.
        records: Its episodes, in their order, each with what passed the interface.
        horizon: Number of episodes that were planned; a flag among them is false with probability 5 % at most.
        seed: Seed of the numbers that break ties.

    Returns:
        JSON object: `policy`, `observed`, `reference_episodes`, `false_alarm_rate`, `horizon`, `threshold`,
        `flagged_at` (index of the episode after which the flag was raised, or None), `explanation` (of that episode,
        else of the last one) and `episodes` with `index`, `task`, `score`, `p_value`, `statistic`, `shifted`.
    """
    detector = ShiftDetector(reference, horizon=horizon, seed=seed)
    assessments = [detector.assess(record.interface) for record in records if record.interface is not None]
    pairs = list(zip(records, assessments, strict=True))
    flagged, told = next(((record.index, one) for record, one in pairs if one.shifted), (None, assessments[-1]))
    return {
        "policy": policy,
        "observed": reference.observed,
        "reference_episodes": reference.episodes,
        "false_alarm_rate": FALSE_ALARM_RATE,
        "horizon": horizon,
        "threshold": detector.threshold,
        "flagged_at": flagged,
        "explanation": told.explanation,
        "episodes": [_entry(record, assessment) for record, assessment in pairs],
    }


def _entry(record: EpisodeRecord, assessment: Assessment) -> Mapping[str, Any]:
    assessed = {name: getattr(assessment, name) for name in ("score", "p_value", "statistic", "shifted")}
    return {"index": record.index, "task": record.task, **assessed}
