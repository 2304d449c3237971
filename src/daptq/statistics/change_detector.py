"""Tells when a stream of scores stops being exchangeable with a reference, with a stated rate of false alarms.

Every new score gets a conformal p-value among the reference scores and the ones before it. While reference and stream
are exchangeable the p-values are independent and uniform on [0, 1], whatever the scores' distribution (Vovk, Gammerman
and Shafer 2005, theorem 8.2). Bettors with power bets e p^(e-1) on small p-values start anew at every score; their
joint capital R grows by one unit a score on average, so by Doob's inequality

    P(R reaches c within N scores) <= N / c,        E[scores until R reaches c] >= c

(Shiryaev-Roberts statistic; Roberts 1966; Volkhonskiy et al. 2017). Scores of different groups are compared within
their group only: a stream may mix the groups as it likes.

The module does not know what is scored; larger means more unusual.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence

import numpy as np

from daptq.errors import InvalidInputError

__all__ = ["ChangeDetector"]

_POWERS = np.arange(1, 10) / 10.0


class ChangeDetector:
    """Shiryaev-Roberts statistic over conformal p-values.

    Args:
        reference: Scores of the reference by group. They must not have been used to choose how scores are computed.
        false_alarm_rate: Largest probability of an alarm within `horizon` scores when nothing has changed, in (0, 1).
        horizon: Number of scores that the rate is about; on average false alarms are `horizon` / `false_alarm_rate`
            scores apart or more.
        seed: Seed of the numbers that break ties, without which p-values would not be uniform.

    Attributes:
        threshold: Value of the statistic from which on it is an alarm.
        statistic: Present value.

    Raises:
        InvalidInputError: A rate, a horizon or a score is not usable.
    """

    def __init__(
        self,
        reference: Mapping[str, Sequence[float]],
        *,
        false_alarm_rate: float = 0.05,
        horizon: int = 100,
        seed: int = 0,
    ) -> None:
        if not 0.0 < false_alarm_rate < 1.0:
            message = f"false_alarm_rate must be between 0 and 1, got {false_alarm_rate}."
            raise InvalidInputError(message + " 0.05 is customary.")
        if horizon < 1:
            raise InvalidInputError(f"horizon must be at least 1, got {horizon}. Give a number of episodes.")
        self._bags = {group: sorted(map(_finite, scores)) for group, scores in reference.items()}
        self._generator = np.random.default_rng(seed)
        self._capital = np.zeros(len(_POWERS))
        self.threshold = horizon / false_alarm_rate

    @property
    def statistic(self) -> float:
        """Shiryaev-Roberts statistic, mean over the bettors."""
        return float(self._capital.mean())

    @property
    def alarm(self) -> bool:
        """Whether the statistic has reached the threshold."""
        return self.statistic >= self.threshold

    def update(self, score: float, group: str) -> float:
        """Takes in the next score.

        Args:
            score: The score.
            group: Its group; in a group without a reference scores are compared with each other.

        Returns:
            Its p-value in (0, 1].

        Raises:
            InvalidInputError: The score is not finite. Nothing was taken in.
        """
        bag = self._bags.setdefault(group, [])
        value = _finite(score)
        above = len(bag) - bisect.bisect_right(bag, value)
        ties = bisect.bisect_right(bag, value) - bisect.bisect_left(bag, value) + 1
        bisect.insort(bag, value)
        p = (above + (1.0 - float(self._generator.uniform())) * ties) / len(bag)
        self._capital = (1.0 + self._capital) * _POWERS * p ** (_POWERS - 1.0)
        return p

    def restart(self) -> None:
        """Forgets the evidence so far; the scores stay in the reference."""
        self._capital = np.zeros(len(_POWERS))


def _finite(score: float) -> float:
    if not math.isfinite(score):
        raise InvalidInputError(f"score must be finite, got {score}. Check the policy and its inputs.")
    return float(score)
