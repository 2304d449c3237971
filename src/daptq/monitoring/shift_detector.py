"""After every watched episode: has what passes the interfaces shifted from what is normal?

The false-alarm rate is a guarantee for episodes whose initial states are drawn at random, see
`daptq.statistics.change_detector`; those of a fixed list taken in turn are no such sample. The module does not know
where the readings come from: from a policy that runs now, or from the records of an evaluation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from daptq.closed_loop.interface_stream import Reading
from daptq.monitoring.interface_reference import InterfaceReference
from daptq.statistics.change_detector import ChangeDetector

__all__ = ["FALSE_ALARM_RATE", "Assessment", "ShiftDetector"]

FALSE_ALARM_RATE = 0.05


@dataclass(frozen=True, kw_only=True)
class Assessment:
    """What is known after an episode.

    Attributes:
        episode: Number of the episode among those that were assessed, from 0.
        instruction: The instruction that the policy read.
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
        of = f" of {reading.interface}" if len(self._reference.interfaces) > 1 else ""
        usual = float(np.median(self._reference.scores[reading.instruction]))
        return (
            f"{'shift' if self.shifted else 'no shift'} at {self._reference.names}: statistic "
            f"{self._detector.statistic:.3g} of {self.threshold:g}; this episode scores {reading.score:.3g}, usual is "
            f"{usual:.3g} (p = {p_value:.3g}); channel {reading.channel}{of} moved most, by {reading.moved:+.1f} "
            "standard deviations of an episode's mean"
        )

    def restart(self) -> None:
        """Lowers the flag and forgets the evidence so far."""
        self._detector.restart()
        self.shifted = False
