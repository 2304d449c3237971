"""The anytime-valid interval and the planner against independent constructions in float64, and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from daptq.errors import InvalidInputError
from daptq.statistics.clustered import clustered_difference_interval
from daptq.statistics.paired_proportions import paired_difference_interval
from daptq.statistics.sequential import anytime_interval, non_inferiority_power, pairs_needed

SEED = 20261124


def capital(outcomes: list[int], null: float) -> float:
    """Mean capital of the bettors, round by round, as the definition says."""
    stakes = (np.arange(64) + 0.5) / 64
    money = np.ones(64)
    for outcome in outcomes:
        money = money * (1 + stakes * ((outcome + 1) / (null + 1) - 1))
    return float(money.mean())


def test_limits_are_where_the_capital_reaches_its_threshold() -> None:
    outcomes = [1, 0, -1, 0, 0, 1, 1, 0, 0, 1, 0, 1]
    low, high = anytime_interval(5, 1, 12)
    assert capital(outcomes, low) == pytest.approx(40.0, rel=1e-6)
    assert capital([-outcome for outcome in outcomes], -high) == pytest.approx(40.0, rel=1e-6)
    assert low < 4 / 12 < high


@pytest.mark.parametrize("difference", [-0.05, 0.0])
def test_error_holds_under_peeking_after_every_pair(difference: float) -> None:
    """2.5 % for each side; of 400 runs more than 5 % would come up with probability 0.2 % at exactly 2.5 %."""
    runs, pairs, discordant = 400, 500, 0.15
    generator = np.random.default_rng(SEED)
    chances = [(discordant - difference) / 2, 1 - discordant, (discordant + difference) / 2]
    outcomes = generator.choice([-1, 0, 1], p=chances, size=(runs, pairs))
    stakes = (np.arange(64) + 0.5) / 64
    for sign in (1, -1):
        ratio = (sign * outcomes + 1) / (sign * difference + 1) - 1
        wrong = 0
        for run in ratio:
            money = np.exp(np.cumsum(np.log1p(stakes[:, None] * run), axis=1)).mean(axis=0)
            wrong += bool((money >= 40.0).any())
        assert wrong <= 20
    # The function stops where this construction does: at the last pair of the first run both see the same counts.
    gained, lost = int((outcomes[0] == 1).sum()), int((outcomes[0] == -1).sum())
    low, high = anytime_interval(gained, lost, pairs)
    assert capital(list(outcomes[0]), low) == pytest.approx(40.0, rel=1e-4)
    assert -1 < low < high < 1


def test_a_clear_case_ends_early() -> None:
    """Equal policies with 2 % discordant pairs, margin 5 points: done by 400 pairs in nine runs of ten."""
    generator = np.random.default_rng(SEED)
    ended = 0
    for _ in range(50):
        outcomes = generator.choice([-1, 0, 1], p=[0.01, 0.98, 0.01], size=400)
        ended += any(
            anytime_interval(int((outcomes[:n] == 1).sum()), int((outcomes[:n] == -1).sum()), n).low > -0.05
            for n in range(50, 401, 50)
        )
    assert ended >= 45


def test_power_equals_full_enumeration() -> None:
    n, margin, gained_rate, lost_rate = 40, 0.2, 0.09, 0.06
    total = 0.0
    for gained in range(n + 1):
        for lost in range(n + 1 - gained):
            if paired_difference_interval(gained, lost, n).low > -margin:
                ways = math.comb(n, gained) * math.comb(n - gained, lost)
                total += ways * gained_rate**gained * lost_rate**lost * (1 - 0.15) ** (n - gained - lost)
    assert non_inferiority_power(n, margin, 0.15, difference=0.03) == pytest.approx(total, abs=1e-7)


def test_planned_pairs_reach_the_power_and_one_fewer_does_not() -> None:
    n = pairs_needed(0.1, 0.1)
    assert non_inferiority_power(n, 0.1, 0.1) >= 0.9 > non_inferiority_power(n - 1, 0.1, 0.1)
    # The textbook's normal approximation, (1.96 + 1.28)^2 p / m^2, is close and a little short.
    assert 105 <= n <= 130


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"margin": 0.0, "discordant": 0.1}, "margin"),
        ({"margin": 0.05, "discordant": 0.1, "difference": -0.05}, "difference"),
        ({"margin": 0.05, "discordant": 0.1, "difference": 0.2}, "discordant"),
        ({"margin": 0.05, "discordant": 1.1}, "discordant"),
        ({"margin": 0.05, "discordant": 0.1, "power": 1.0}, "power"),
        ({"margin": 1e-4, "discordant": 1.0}, "margin"),
    ],
)
def test_impossible_plans_are_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(InvalidInputError, match=f"^{message} must be"):
        pairs_needed(**arguments)


def test_clustered_interval_equals_the_sandwich_formula() -> None:
    # G = 3 clusters of sizes 3, 2, 1 with residual sums 1.5, -1, -0.5 about the mean 0.5: by hand.
    differences = np.array([1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
    clusters = np.array([0, 0, 0, 1, 1, 2])
    error = math.sqrt(3 / 2 * (1.5**2 + 1.0**2 + 0.5**2)) / 6
    # Student's t, 97.5 % quantile with 2 degrees of freedom, as printed in tables.
    assert clustered_difference_interval(differences, clusters) == pytest.approx(
        (0.5 - 4.30265 * error, 0.5 + 4.30265 * error), abs=1e-4
    )


@pytest.mark.parametrize("clusters", [[0, 0], [0]])
def test_one_cluster_has_no_spread(clusters: list[int]) -> None:
    with pytest.raises(InvalidInputError, match="clusters must be"):
        clustered_difference_interval(np.array([0.0, 1.0]), np.array(clusters))
