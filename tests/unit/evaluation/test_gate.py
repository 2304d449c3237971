"""The gate: what its text may be, and that a limit is held against the whole interval."""

from __future__ import annotations

from typing import Any

import pytest

from daptq.errors import InvalidInputError
from daptq.evaluation.comparison import Comparison, GateVerdict
from daptq.evaluation.gate import Gate
from daptq.metrics.motion import METRICS


def estimate(value: float, low: float, high: float) -> dict[str, float]:
    return {"value": value, "low": low, "high": high}


NONE = estimate(0.0, 0.0, 0.0)
PAIRS: dict[str, Any] = {
    "difference": -1.0,
    "low": -4.0,
    "high": 2.0,
    "n": 400,
    "both": 390,
    "neither": 0,
    "only_candidate": 3,
}
PAIRS |= {"only_baseline": 7, "mcnemar_p": 0.3, "only_candidate_episodes": [], "only_baseline_episodes": []}
PAIRS |= {"clustered_by_task": None}


def after(steps: int, median: dict[str, float]) -> dict[str, Any]:
    spread = {"median": NONE, "mean": NONE, "rms": NONE}
    values = {"position_mm": {**spread, "median": median}, "rotation_deg": spread}
    return {"steps": steps, "n": 9, **values, "per_state_mm": [1.0] * 9}


@pytest.fixture
def comparison() -> dict[str, Any]:
    after_steps = [after(1, estimate(9.0, 8.0, 9.5)), after(16, estimate(1.0, 0.8, 1.2))]
    states = {"n": 9, "episodes": 9, "after_steps": after_steps, "growth": []}
    jerk = {"n": 400, "baseline": 1.0, "candidate": 1.02, "change": estimate(1.02, 0.99, 1.05)}
    return {
        "policy": "q",
        "against": "p",
        "paired": {**PAIRS, "at_last_step": PAIRS, "discordant": []},
        "motion": {name: {"n": 0} for name in METRICS} | {"rms_jerk": jerk},
        "drift": {"whole_episode": None, "identical_states": states},
    }


def verdict(gate: Gate, comparison: dict[str, Any]) -> GateVerdict:
    return gate.verdict(Comparison.from_json(comparison))


def test_limits_are_read_in_any_order() -> None:
    assert Gate.parse("jerk=1.1, margin=0.05") == Gate(margin=0.05, jerk=1.1)
    assert Gate.parse("drift=2") == Gate(drift=2.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "margin, drift or jerk once"),
        ("speed=1", "margin, drift or jerk once, got 'speed=1'"),
        ("drift=1,drift=2", "margin, drift or jerk once"),
        ("drift", "drift must be a number, got ''"),
        ("drift=far", "drift must be a number, got 'far'"),
        ("margin=0", "margin must be positive"),
        ("margin=-0.05", "margin must be positive"),
        ("jerk=inf", "jerk must be positive and finite"),
        ("jerk=nan", "jerk must be positive and finite"),
    ],
)
def test_other_texts_are_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        Gate.parse(text)


@pytest.mark.parametrize(
    ("text", "passed"),
    [
        ("margin=0.05", True),
        ("margin=0.04", False),  # -4.0 is not above -4
        ("margin=0.02", False),  # the difference itself would pass
        ("drift=1.2", True),
        ("drift=1.1", False),  # the median itself would pass
        ("jerk=1.05", True),
        ("jerk=1.03", False),
    ],
)
def test_the_whole_interval_has_to_keep_the_limit(comparison: dict[str, Any], text: str, passed: bool) -> None:
    (check,) = verdict(Gate.parse(text), comparison).checks
    assert check.passed is passed
    assert check.name == text.partition("=")[0]


def test_every_limit_is_checked_and_says_what_was_measured(comparison: dict[str, Any]) -> None:
    checks = verdict(Gate(margin=0.05, drift=1.0, jerk=1.1), comparison).checks
    assert [(check.name, check.passed) for check in checks] == [("margin", True), ("drift", False), ("jerk", True)]
    assert "-1.0 points [-4.0, +2.0], n = 400" in checks[0].reason
    assert "1.00 mm [0.80, 1.20] after 16 steps" in checks[1].reason
    assert "1.020 [0.990, 1.050]" in checks[2].reason


def test_an_evaluation_that_was_looked_at_counts_by_its_own_interval(comparison: dict[str, Any]) -> None:
    comparison["stopping"] = {"verdict": "undecided", "margin": 0.05, "pairs": 400, "planned": 400}
    comparison["stopping"] |= {"low": -6.0, "high": 4.0}
    (check,) = verdict(Gate(margin=0.05), comparison).checks
    assert not check.passed  # though -4.0 is above -5
    assert "[-6.0, +4.0], n = 400" in check.reason


def test_what_was_not_measured_cannot_pass(comparison: dict[str, Any]) -> None:
    comparison["drift"]["identical_states"]["after_steps"] = []
    comparison["motion"]["rms_jerk"] = {"n": 0}
    comparison["paired"] = None
    for text, missing in (("margin=0.05", "paired"), ("drift=1", "drift"), ("jerk=1", "jerk")):
        with pytest.raises(InvalidInputError, match=f"{missing} must "):
            verdict(Gate.parse(text), comparison)


def test_the_verdict_passes_when_every_check_does(comparison: dict[str, Any]) -> None:
    passed = verdict(Gate(margin=0.05, drift=1.2), comparison)
    assert (passed.passed, passed.limits.to_json()) == (True, {"margin": 0.05, "drift": 1.2})
    assert [(check.name, check.passed) for check in passed.checks] == [("margin", True), ("drift", True)]
    failed = verdict(Gate(margin=0.05, drift=1.1), comparison)
    assert [check.passed for check in failed.checks] == [True, False]
    assert not failed.passed
