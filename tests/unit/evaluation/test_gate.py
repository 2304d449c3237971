"""The gate: what its text may be, and that a limit is held against the whole interval."""

from __future__ import annotations

from typing import Any

import pytest

from daptq.errors import InvalidInputError
from daptq.evaluation.gate import Gate, gate_summary


@pytest.fixture
def comparison() -> dict[str, Any]:
    return {
        "paired": {"difference": -1.0, "low": -4.0, "high": 2.0, "n": 400},
        "drift": {
            "identical_states": {
                "after_steps": [
                    {"steps": 1, "n": 9, "position_mm": {"median": {"value": 9.0, "low": 8.0, "high": 9.5}}},
                    {"steps": 16, "n": 9, "position_mm": {"median": {"value": 1.0, "low": 0.8, "high": 1.2}}},
                ]
            }
        },
        "motion": {"rms_jerk": {"n": 400, "change": {"value": 1.02, "low": 0.99, "high": 1.05}}},
    }


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
    (check,) = Gate.parse(text).checks(comparison)
    assert check.passed is passed
    assert check.name == text.partition("=")[0]


def test_every_limit_is_checked_and_says_what_was_measured(comparison: dict[str, Any]) -> None:
    checks = Gate(margin=0.05, drift=1.0, jerk=1.1).checks(comparison)
    assert [(check.name, check.passed) for check in checks] == [("margin", True), ("drift", False), ("jerk", True)]
    assert "-1.0 points [-4.0, +2.0], n = 400" in checks[0].reason
    assert "1.00 mm [0.80, 1.20] after 16 steps" in checks[1].reason
    assert "1.020 [0.990, 1.050]" in checks[2].reason


def test_an_evaluation_that_was_looked_at_counts_by_its_own_interval(comparison: dict[str, Any]) -> None:
    comparison["stopping"] = {"verdict": "undecided", "margin": 0.05, "pairs": 400, "low": -6.0, "high": 4.0}
    (check,) = Gate(margin=0.05).checks(comparison)
    assert not check.passed  # though -4.0 is above -5
    assert "[-6.0, +4.0], n = 400" in check.reason


def test_what_was_not_measured_cannot_pass(comparison: dict[str, Any]) -> None:
    comparison["drift"]["identical_states"]["after_steps"] = []
    comparison["motion"]["rms_jerk"] = {"n": 0}
    comparison["paired"] = None
    for text, missing in (("margin=0.05", "paired"), ("drift=1", "drift"), ("jerk=1", "jerk")):
        with pytest.raises(InvalidInputError, match=f"{missing} must "):
            Gate.parse(text).checks(comparison)


def test_the_summary_passes_when_every_check_does(comparison: dict[str, Any]) -> None:
    passed = gate_summary(Gate(margin=0.05, drift=1.2), comparison)
    assert (passed["passed"], passed["limits"]) == (True, {"margin": 0.05, "drift": 1.2})
    assert [(check["name"], check["passed"]) for check in passed["checks"]] == [("margin", True), ("drift", True)]
    failed = gate_summary(Gate(margin=0.05, drift=1.1), comparison)
    assert [check["passed"] for check in failed["checks"]] == [True, False]
    assert not failed["passed"]
