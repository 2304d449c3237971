"""Ends a paired evaluation as soon as it is settled whether the candidate loses more than a margin.

The question is looked at after complete rounds over the tasks, with an interval that holds at all looks together
(`sequential.anytime_interval`). Rounds matter because tasks differ: over one, the expected growth of a bettor's capital
is the product of one factor per task, at most their mean to the power of their number, and the claim is about the mean.
An evaluation that no look settles is undecided, even where an interval for a fixed number of pairs would settle it:
that is the price of looking.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from daptq.errors import InvalidInputError
from daptq.statistics.sequential import anytime_interval

# Looking after every pair would leave worker processes without work; that many keep a dozen of them busy.
LEAST_PAIRS_BETWEEN_LOOKS = 20

Verdict = Literal["non-inferior", "inferior", "undecided"]


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What the looks so far say of one candidate.

    Attributes:
        verdict: ``"non-inferior"`` (the loss is below the margin), ``"inferior"`` (it is above), or ``"undecided"``.
        margin: Largest loss of success that is accepted, a fraction.
        pairs: Number of pairs at the look that decided, or at the last one.
        low: Lower limit of candidate - baseline at that look, a fraction; it holds at all looks together.
        high: Upper limit.
    """

    verdict: Verdict
    margin: float
    pairs: int
    low: float
    high: float

    @property
    def settled(self) -> bool:
        """Whether the question is answered."""
        return self.verdict != "undecided"


def looks(pairs: int, tasks: int) -> range:
    """Numbers of pairs after which to look, the last one at most `pairs`.

    Args:
        pairs: Most pairs that are run.
        tasks: Number of tasks; pair i asks task i modulo this number.

    Raises:
        InvalidInputError: `pairs` is not a multiple of `tasks`, so the last round would favour some tasks.
    """
    if pairs % tasks:
        message = f"episodes must be a multiple of the number of tasks, {tasks}, got {pairs}."
        raise InvalidInputError(message + " Stopping early looks at complete rounds over the tasks only.")
    step = min(pairs, tasks * -(-LEAST_PAIRS_BETWEEN_LOOKS // tasks))
    return range(step, pairs + 1, step)


@dataclass(frozen=True, kw_only=True)
class EarlyStop:
    """When an evaluation may end before its last pair.

    Attributes:
        margin: Largest loss of success that is accepted, a fraction in (0, 1).
        looks: Numbers of pairs after which to look, ascending; see `looks`.

    Raises:
        InvalidInputError: The margin is out of range.
    """

    margin: float
    looks: Sequence[int]

    def __post_init__(self) -> None:
        if not 0.0 < self.margin < 1.0:
            message = f"margin must be between 0 and 1, got {self.margin}. Five points of success are 0.05."
            raise InvalidInputError(message)

    def decide(self, outcomes: Sequence[tuple[bool, bool]]) -> Decision:
        """The first decision that the looks come to.

        Args:
            outcomes: Success of (baseline, candidate) per pair, in order, up to a look.

        Returns:
            The decision of the first look that settles the question, else what the last one knows.
        """
        verdict: Verdict = "undecided"
        n, low, high = 0, -1.0, 1.0
        for n in (look for look in self.looks if look <= len(outcomes)):
            gained = sum(candidate and not baseline for baseline, candidate in outcomes[:n])
            lost = sum(baseline and not candidate for baseline, candidate in outcomes[:n])
            low, high = anytime_interval(gained, lost, n)
            if low > -self.margin or high < -self.margin:
                verdict = "non-inferior" if low > -self.margin else "inferior"
                break
        return Decision(verdict=verdict, margin=self.margin, pairs=n, low=low, high=high)
