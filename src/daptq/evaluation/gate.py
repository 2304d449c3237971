"""A verdict that can stand in a user's CI: limits that a result has to keep, and which of them it does not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from daptq.errors import InvalidInputError
from daptq.metrics.drift import headline_drift

EXAMPLE = "margin=0.05,drift=1.5,jerk=1.1"


@dataclass(frozen=True, kw_only=True)
class Check:
    """One limit of a gate against one result.

    Attributes:
        name: ``"margin"``, ``"drift"`` or ``"jerk"``.
        passed: Whether the whole interval keeps the limit.
        reason: What was measured, and what the limit is.
    """

    name: str
    passed: bool
    reason: str


@dataclass(frozen=True, kw_only=True)
class Gate:
    """Limits for one candidate against its baseline; None asks for nothing. An interval has to lie within as a whole.

    Attributes:
        margin: Largest loss of success, a fraction: the lower limit of the paired difference lies above -margin.
        drift: Largest median drift after 16 steps from identical states [mm].
        jerk: Largest ratio of the root mean square jerk to the baseline's, median over episodes.
    """

    margin: float | None = None
    drift: float | None = None
    jerk: float | None = None

    @classmethod
    def parse(cls, text: str) -> Gate:
        """Reads ``"margin=0.05,drift=1.5,jerk=1.1"``, in any order, each at most once.

        Raises:
            InvalidInputError: The text is not of this form, or a limit is not a positive number.
        """
        limits: dict[str, float] = {}
        for part in text.split(","):
            name, _, value = (piece.strip() for piece in part.partition("="))
            if name not in ("margin", "drift", "jerk") or name in limits:
                raise InvalidInputError(f"gate must name margin, drift or jerk once, got {part!r}. Write {EXAMPLE}.")
            try:
                limits[name] = float(value)
            except ValueError:
                raise InvalidInputError(f"{name} must be a number, got {value!r}. Write {EXAMPLE}.") from None
            if not 0.0 < limits[name] < math.inf:
                raise InvalidInputError(f"{name} must be positive and finite, got {value}. Write {EXAMPLE}.")
        return cls(**limits)

    def checks(self, comparison: Mapping[str, Any]) -> list[Check]:
        """Holds a comparison of `daptq.evaluate` against every limit that is set.

        Args:
            comparison: An entry of the result's `comparisons`.

        Raises:
            InvalidInputError: The comparison lacks what a limit is about.
        """
        found = []
        if self.margin is not None:
            paired = _part(comparison, "paired")
            # Where it was looked at on the way, the interval that holds at all looks together is the one that counts.
            interval = comparison.get("stopping", paired)
            reason = (
                f"success {paired['difference']:+.1f} points [{interval['low']:+.1f}, {interval['high']:+.1f}], "
                f"n = {paired['n']}; allowed: above {-100.0 * self.margin:+.1f}"
            )
            found.append(Check(name="margin", passed=interval["low"] > -100.0 * self.margin, reason=reason))
        if self.drift is not None:
            headline = headline_drift(_part(comparison, "drift")["identical_states"])
            if headline is None:
                raise InvalidInputError("drift must have been measured, got no states. Evaluate with drift states.")
            median = headline["position_mm"]["median"]
            reason = (
                f"median drift {median['value']:.2f} mm [{median['low']:.2f}, {median['high']:.2f}] after "
                f"{headline['steps']} steps, n = {headline['n']}; allowed: {self.drift:g} mm"
            )
            found.append(Check(name="drift", passed=median["high"] <= self.drift, reason=reason))
        if self.jerk is not None:
            entry = _part(comparison, "motion")["rms_jerk"]
            if not entry["n"]:
                raise InvalidInputError("jerk must be defined, got a robot that never moved. Leave it out of the gate.")
            change = entry["change"]
            reason = (
                f"jerk {change['value']:.3f} [{change['low']:.3f}, {change['high']:.3f}] of the baseline's, "
                f"n = {entry['n']}; allowed: {self.jerk:g}"
            )
            found.append(Check(name="jerk", passed=change["high"] <= self.jerk, reason=reason))
        return found


def gate_summary(gate: Gate, comparison: Mapping[str, Any]) -> dict[str, Any]:
    """What a gate says of a comparison, as a JSON object for the result.

    Args:
        gate: The limits.
        comparison: An entry of the result's `comparisons`.

    Returns:
        `passed`, `limits` (those that are set, by name) and `checks` with `name`, `passed` and `reason`.

    Raises:
        InvalidInputError: The comparison lacks what a limit is about.
    """
    checks = gate.checks(comparison)
    return {
        "passed": all(check.passed for check in checks),
        "limits": {name: limit for name, limit in asdict(gate).items() if limit is not None},
        "checks": [asdict(check) for check in checks],
    }


def _part(comparison: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part: Mapping[str, Any] | None = comparison.get(name)
    if part is None:
        message = f"{name} must be in the comparison, got none."
        raise InvalidInputError(message + " Run whole episodes with this version of daptq.")
    return part
