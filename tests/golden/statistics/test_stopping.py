"""Early stopping: its error under peeking and its power by simulation, where tasks differ, and its looks by hand."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from daptq.errors import InvalidInputError
from daptq.statistics import stopping
from daptq.statistics.paired_proportions import paired_difference_interval
from daptq.statistics.sequential import anytime_interval, pairs_needed
from daptq.statistics.stopping import EarlyStop, looks

MARGIN = 0.1
PAIRS = 400
# Chance that only the baseline, or only the candidate, succeeds in each of four tasks that differ as real ones do.
AT_THE_MARGIN = ((0.30, 0.05), (0.02, 0.02), (0.15, 0.05), (0.10, 0.05))
EQUAL = ((0.06, 0.06), (0.0, 0.0), (0.03, 0.01), (0.01, 0.03))
BROKEN = ((0.9, 0.0), (0.5, 0.0), (0.4, 0.05), (0.7, 0.0))


def simulated(chances: tuple[tuple[float, float], ...], runs: int) -> list[list[tuple[bool, bool]]]:
    """Runs of PAIRS pairs, task after task."""
    generator = np.random.default_rng(20261125)
    draws: NDArray[np.float64] = generator.uniform(size=(runs, PAIRS))
    lost = np.resize([loss for loss, _ in chances], PAIRS)
    gained = np.resize([gain for _, gain in chances], PAIRS)
    only_baseline = draws < lost
    only_candidate = (draws >= lost) & (draws < lost + gained)
    both = ~only_baseline & ~only_candidate
    return [
        list(zip((row_both | row_base).tolist(), (row_both | row_candidate).tolist(), strict=True))
        for row_both, row_base, row_candidate in zip(both, only_baseline, only_candidate, strict=True)
    ]


@pytest.fixture(autouse=True)
def remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same counts come up again and again in a simulation."""
    monkeypatch.setattr(stopping, "anytime_interval", cache(anytime_interval))


def verdicts(chances: tuple[tuple[float, float], ...], runs: int) -> tuple[dict[str, int], float]:
    """How often each verdict is reached, and the mean number of pairs."""
    decisions = [
        EarlyStop(margin=MARGIN, looks=looks(PAIRS, len(chances))).decide(run) for run in simulated(chances, runs)
    ]
    counts = {name: sum(one.verdict == name for one in decisions) for name in ("non-inferior", "inferior", "undecided")}
    return counts, float(np.mean([one.pairs for one in decisions]))


def test_a_loss_of_exactly_the_margin_is_rarely_called_non_inferior_or_inferior() -> None:
    """2.5 % each way is promised; of 400 runs more than 20 come up with probability 0.2 % at exactly 2.5 %."""
    difference = np.mean([gained - lost for lost, gained in AT_THE_MARGIN])
    assert difference == pytest.approx(-MARGIN)
    counts, _ = verdicts(AT_THE_MARGIN, 400)
    assert counts["non-inferior"] <= 20
    assert counts["inferior"] <= 20


def test_the_simulation_would_see_a_rule_that_ignores_peeking(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interval for a fixed number of pairs, looked at 20 times, errs several times as often as it promises."""
    monkeypatch.setattr(stopping, "anytime_interval", cache(paired_difference_interval))
    counts, _ = verdicts(AT_THE_MARGIN, 400)
    assert max(counts["non-inferior"], counts["inferior"]) > 30


def test_clear_cases_end_early() -> None:
    counts, pairs = verdicts(EQUAL, 100)
    assert counts["non-inferior"] >= 95
    # A plan has to fear policies that often disagree; stopping pays for the case at hand.
    assert pairs < 200 < pairs_needed(MARGIN, 0.3)
    counts, pairs = verdicts(BROKEN, 100)
    assert counts["inferior"] == 100
    assert pairs < 40


def test_looks_come_after_complete_rounds() -> None:
    assert list(looks(100, 4)) == [20, 40, 60, 80, 100]
    assert list(looks(90, 10)) == [20, 40, 60, 80]
    assert list(looks(84, 7)) == [21, 42, 63, 84]
    assert list(looks(60, 30)) == [30, 60]
    assert list(looks(8, 4)) == [8]
    with pytest.raises(InvalidInputError, match="multiple of the number of tasks, 4, got 90"):
        looks(90, 4)


def test_the_first_look_that_settles_the_question_counts() -> None:
    lost_at_first = [(True, False)] * 40 + [(True, True)] * 360
    decision = EarlyStop(margin=MARGIN, looks=(20, 40, 400)).decide(lost_at_first)
    assert (decision.verdict, decision.pairs) == ("inferior", 20)
    low, high = anytime_interval(0, 20, 20)
    assert (decision.low, decision.high) == (low, high)
    assert decision.high == high < -0.1
    undecided = EarlyStop(margin=MARGIN, looks=(4, 8)).decide([(True, True)] * 4)
    assert (undecided.verdict, undecided.pairs) == ("undecided", 4)
    assert undecided.low < -MARGIN < undecided.high


@pytest.mark.parametrize("margin", [0.0, 1.0, -0.1])
def test_a_margin_out_of_range_is_refused(margin: float) -> None:
    with pytest.raises(InvalidInputError, match="margin must be between 0 and 1"):
        EarlyStop(margin=margin, looks=(1,))
