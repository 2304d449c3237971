"""The verdict on a comparison: pass, fail or undecided, with the reason.

A gate that was asked for decides alone; after an early stop, the interval that holds at all looks does. Otherwise the
question is whether a loss of `MARGIN` points of success is ruled out. Nothing is judged beyond what the intervals in
the result say.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

from daptq.evaluation.comparison import Comparison
from daptq.metrics.pairs import Paired
from daptq.report.wording import count_of, points, points_interval
from daptq.statistics.interval import CONFIDENCE
from daptq.statistics.sequential import POWER

MARGIN = 5.0

PASS, FAIL, UNDECIDED = "pass", "fail", "undecided"

# What an early stop found: outcome and headline.
_STOPPED = {
    "non-inferior": (PASS, "a loss of {points} is ruled out"),
    "inferior": (FAIL, "more than {points} are lost"),
    "undecided": (UNDECIDED, "too few episodes to tell"),
}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a comparison comes to.

    Attributes:
        outcome: `PASS`, `FAIL` or `UNDECIDED`.
        headline: The finding in a few words.
        reason: The numbers behind it.
    """

    outcome: str
    headline: str
    reason: str


def verdict(comparison: Comparison) -> Verdict:
    """Judges one comparison.

    Args:
        comparison: One entry of the result's `comparisons`.
    """
    gate = comparison.gate
    if gate is not None:
        kept = sum(check.passed for check in gate.checks)
        if gate.passed:
            return Verdict(outcome=PASS, headline="every limit of the gate is kept", reason=_difference(comparison))
        headline = f"{len(gate.checks) - kept} of {count_of(len(gate.checks), 'limit')} of the gate not kept"
        return Verdict(outcome=FAIL, headline=headline, reason=_difference(comparison))
    stopping = comparison.stopping
    if stopping is not None:
        outcome, words = _STOPPED[stopping.verdict]
        headline = words.format(points=f"{100 * stopping.margin:g} points")
        return Verdict(outcome=outcome, headline=headline, reason=_difference(comparison))
    paired = comparison.paired
    if paired is None:
        reason = "The policies only continued from saved states; success was not measured."
        return Verdict(outcome=UNDECIDED, headline="no whole episodes were run", reason=reason)
    difference = _difference(comparison)
    if paired.low > -MARGIN:
        reason = f"{difference} The whole interval lies above {points(-MARGIN)}."
        return Verdict(outcome=PASS, headline=f"a loss of {MARGIN:g} points is ruled out", reason=reason)
    reaches = f"The interval reaches down to {points(paired.low)}"
    if paired.high < 0:
        reason = f"{difference} {reaches} and does not contain 0."
        return Verdict(outcome=FAIL, headline="success is lower", reason=reason)
    reason = (
        f"{difference} {reaches}, so a loss of {MARGIN:g} points is not ruled out, and up to {points(paired.high)}, "
        f"so no loss is shown either.{_more_pairs(paired)}"
    )
    return Verdict(outcome=UNDECIDED, headline="too few episodes to tell", reason=reason)


def _difference(comparison: Comparison) -> str:
    paired = comparison.paired
    if paired is None:
        return "Success was not measured."
    difference = points_interval(paired.difference, paired.low, paired.high)
    return (
        f"Success against the baseline: {difference} points (95 % interval, "
        f"{count_of(paired.n, 'pair')}; {paired.only_baseline} lost, {paired.only_candidate} won, exact "
        f"McNemar p = {paired.mcnemar_p:.2g})."
    )


def _more_pairs(paired: Paired) -> str:
    """How many pairs would do, by the normal approximation, if both policies were equally good."""
    discordant = (paired.only_baseline + paired.only_candidate) / paired.n
    if discordant == 0.0:
        return ""
    quantiles = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2) + NormalDist().inv_cdf(POWER)
    needed = quantiles**2 * discordant / (MARGIN / 100) ** 2
    return f" If both are equally good, about {float(f'{needed:.2g}'):.0f} pairs settle it."
