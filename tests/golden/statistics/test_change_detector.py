"""The change detector against its definition, by its false alarms, and by what it finds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from daptq.errors import InvalidInputError
from daptq.statistics.change_detector import ChangeDetector


def test_equals_the_definition_written_out() -> None:
    generator = np.random.default_rng(0)
    reference = generator.normal(size=12).tolist()
    stream = [*generator.normal(size=10).tolist(), reference[3]]
    detector = ChangeDetector({"a": reference}, seed=5)
    ties = np.random.default_rng(5)
    bag, p_values = list(reference), []
    for score in stream:
        found = detector.update(score, "a")
        bag.append(score)
        strictly, equal = sum(one > score for one in bag), sum(one == score for one in bag)
        p_values.append((strictly + (1 - ties.uniform()) * equal) / len(bag))
        assert found == pytest.approx(p_values[-1], rel=1e-12)
        # Shiryaev-Roberts: the capital of bettors who began at every score so far, mean over the powers.
        sums = [
            sum(math.prod(e * p ** (e - 1) for p in p_values[start:]) for start in range(len(p_values)))
            for e in np.arange(1, 10) / 10
        ]
        assert detector.statistic == pytest.approx(np.mean(sums), rel=1e-10)


def test_p_values_are_uniform_and_independent_while_nothing_changes() -> None:
    generator = np.random.default_rng(1)
    rows = []
    for seed in range(400):
        detector = ChangeDetector({"a": generator.exponential(size=7).tolist()}, seed=seed)
        rows.append([detector.update(float(score), "a") for score in generator.exponential(size=6)])
    p = np.array(rows)
    assert stats.kstest(p.ravel(), "uniform").pvalue > 0.001
    correlations = np.corrcoef(p.T)[np.triu_indices(6, 1)]
    assert np.abs(correlations).max() < 4.0 / math.sqrt(400)


def alarms(shift: float, *, runs: int, horizon: int = 100, rate: float = 0.2, chosen: bool = False) -> list[int | None]:
    """Scores until the alarm, or None, in runs over two groups with scores of different scales."""
    generator = np.random.default_rng(2)
    found: list[int | None] = []
    for seed in range(runs):
        reference = {group: (scale * generator.chisquare(8, 20)) for group, scale in (("a", 1.0), ("b", 30.0))}
        if chosen:  # a score that was fitted to its own reference makes the reference look more normal than it is
            reference = {group: 0.75 * scores for group, scores in reference.items()}
        detector = ChangeDetector(
            {group: scores.tolist() for group, scores in reference.items()},
            false_alarm_rate=rate,
            horizon=horizon,
            seed=seed,
        )
        alarm = None
        for number in range(horizon):
            group, scale = (("a", 1.0), ("b", 30.0))[int(generator.integers(2))]
            detector.update(scale * (float(generator.chisquare(8)) + shift), group)
            if detector.alarm:
                alarm = number + 1
                break
        found.append(alarm)
    return found


def test_false_alarms_keep_the_stated_rate() -> None:
    runs = 300
    false = sum(alarm is not None for alarm in alarms(0.0, runs=runs))
    # At most 20 % by Doob's inequality; three standard errors of a rate of 20 % are 7 %.
    assert false / runs < 0.2 + 3 * math.sqrt(0.2 * 0.8 / runs)
    assert false > 0


def test_a_reference_that_chose_the_score_would_break_the_rate() -> None:
    false = sum(alarm is not None for alarm in alarms(0.0, runs=100, chosen=True))
    assert false / 100 > 0.32


def test_a_shift_is_found_and_a_larger_one_sooner() -> None:
    small, large = alarms(8.0, runs=40, rate=0.05), alarms(40.0, runs=40, rate=0.05)
    assert all(alarm is not None for alarm in small + large)
    assert np.median([alarm or 0 for alarm in large]) < np.median([alarm or 0 for alarm in small]) <= 25


def test_restart_forgets_the_evidence() -> None:
    detector = ChangeDetector({"a": [0.0, 1.0, 2.0]}, horizon=1, false_alarm_rate=0.5)
    while not detector.alarm:
        detector.update(1e6, "a")
    detector.restart()
    assert detector.statistic == 0.0
    assert not detector.alarm


def test_an_unknown_group_says_nothing_at_first() -> None:
    assert 0.0 < ChangeDetector({}, seed=1).update(1e9, "new") <= 1.0


def test_bad_input_is_refused() -> None:
    for settings, message in (
        ({"false_alarm_rate": 0.0}, "false_alarm_rate"),
        ({"false_alarm_rate": 1.0}, "false_alarm_rate"),
        ({"horizon": 0}, "horizon"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            ChangeDetector({}, **settings)
    detector = ChangeDetector({"a": [1.0]})
    with pytest.raises(InvalidInputError, match="score must be finite"):
        detector.update(math.nan, "a")
    assert detector.statistic == 0.0
