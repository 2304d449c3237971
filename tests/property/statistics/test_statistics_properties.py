"""Laws that the statistics obey for every count."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from daptq.statistics.paired_proportions import mcnemar_exact, paired_difference_interval
from daptq.statistics.proportion import wilson_interval

trials = st.integers(1, 500)


@given(n=trials, data=st.data())
def test_wilson_contains_the_rate_and_mirrors(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    low, high = wilson_interval(k, n)
    assert 0.0 <= low <= k / n <= high <= 1.0
    mirrored_low, mirrored_high = wilson_interval(n - k, n)
    assert abs(low - (1 - mirrored_high)) < 1e-12
    assert abs(high - (1 - mirrored_low)) < 1e-12


@given(n=trials, data=st.data())
def test_wilson_narrows_with_lower_confidence(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    wide, narrow = wilson_interval(k, n, 0.99), wilson_interval(k, n, 0.8)
    assert wide.low <= narrow.low
    assert narrow.high <= wide.high


@given(n=trials, data=st.data())
def test_paired_interval_contains_the_difference_and_mirrors(n: int, data: st.DataObject) -> None:
    b = data.draw(st.integers(0, n))
    c = data.draw(st.integers(0, n - b))
    low, high = paired_difference_interval(b, c, n)
    assert -1.0 <= low <= (b - c) / n <= high <= 1.0
    assert paired_difference_interval(c, b, n) == (-high, -low)


@given(n=st.integers(2, 300), data=st.data())
def test_one_more_win_moves_the_paired_interval_up(n: int, data: st.DataObject) -> None:
    b = data.draw(st.integers(0, n - 1))
    c = data.draw(st.integers(0, n - 1 - b))
    before, after = paired_difference_interval(b, c, n), paired_difference_interval(b + 1, c, n)
    assert after.low > before.low
    assert after.high >= before.high


@given(b=st.integers(0, 300), c=st.integers(0, 300))
def test_mcnemar_is_a_symmetric_probability(b: int, c: int) -> None:
    p = mcnemar_exact(b, c)
    assert 0.0 < p <= 1.0
    assert p == mcnemar_exact(c, b)
    if abs(b - c) <= 1:
        assert p == 1.0
