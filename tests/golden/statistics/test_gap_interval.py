"""The interval of a robustness gap against its formula, written out, and by its coverage."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from daptq.errors import InvalidInputError
from daptq.statistics.paired_proportions import gap_interval, paired_difference_interval


def draw(
    generator: np.random.Generator, n: int, gained: float, lost: float, shared: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Two conditions of n episodes; with probability `shared` an episode comes out the same under both."""
    choices = generator.choice([-1, 0, 1], p=[lost, 1 - gained - lost, gained], size=(2, n))
    same = generator.uniform(size=n) < shared
    return choices[0], np.where(same, choices[0], choices[1])


def test_equals_the_formula_written_out() -> None:
    first = np.array([-1] * 6 + [1] * 2 + [0] * 22)
    second = np.array([-1] * 2 + [0] * 5 + [1] * 1 + [0] * 22)
    # Differences -4/30 and -1/30; limits by Tango's interval, the correlation by its definition.
    one, other = paired_difference_interval(2, 6, 30), paired_difference_interval(1, 2, 30)
    f, s = -4 / 30, -1 / 30
    cross = sum((a - f) * (b - s) for a, b in zip(first.tolist(), second.tolist(), strict=True))
    r = cross / (sum((a - f) ** 2 for a in first.tolist()) ** 0.5 * sum((b - s) ** 2 for b in second.tolist()) ** 0.5)
    a, b = f - one.low, other.high - s
    low = f - s - (a * a + b * b - 2 * r * a * b) ** 0.5
    a, b = one.high - f, s - other.low
    high = f - s + (a * a + b * b - 2 * r * a * b) ** 0.5
    assert gap_interval(first, second) == pytest.approx((low, high), abs=1e-12)


@pytest.mark.parametrize("shared", [0.0, 0.6])
def test_covers_the_true_gap(shared: float) -> None:
    generator = np.random.default_rng(0)
    draws = [draw(generator, 40, 0.05, 0.12, shared) for _ in range(1500)]
    covered = np.mean([low <= 0.0 <= high for low, high in (gap_interval(*both) for both in draws)])
    # 1500 draws give a rate of 0.95 a standard error of 0.006; Tango's limits are a little conservative.
    assert 0.93 < covered < 0.985


def test_an_interval_that_ignored_the_correlation_would_be_wider() -> None:
    generator = np.random.default_rng(1)
    first, second = draw(generator, 200, 0.1, 0.2, 0.9)
    shuffled = generator.permutation(second)
    assert np.ptp(gap_interval(first, second)) < 0.75 * np.ptp(gap_interval(first, shuffled))


def test_swapping_the_conditions_mirrors_the_interval() -> None:
    first, second = draw(np.random.default_rng(2), 30, 0.1, 0.2, 0.3)
    low, high = gap_interval(first, second)
    assert gap_interval(second, first) == pytest.approx((-high, -low), abs=1e-12)


def test_it_does_not_collapse_without_discordant_pairs() -> None:
    nothing = np.zeros(40, dtype=np.int64)
    low, high = gap_interval(nothing, nothing)
    assert low == pytest.approx(-high)
    assert high > 0.05


def test_bad_input_is_refused() -> None:
    zero, two = np.zeros(3, dtype=np.int64), np.full(3, 2)
    with pytest.raises(InvalidInputError, match="same episodes"):
        gap_interval(zero, zero[:2])
    with pytest.raises(InvalidInputError, match="-1, 0 or 1"):
        gap_interval(zero, two)
    with pytest.raises(InvalidInputError, match="n must be at least 1"):
        gap_interval(zero[:0], zero[:0])
