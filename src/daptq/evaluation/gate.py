"""The gate of a user's CI: limits that a result has to keep, and the verdict whether it does."""

from __future__ import annotations

import math
from dataclasses import dataclass

from daptq.errors import InvalidInputError
from daptq.evaluation.comparison import Comparison, GateCheck, GateLimits, GateVerdict

EXAMPLE = "margin=0.05,drift=1.5,jerk=1.1"


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

    def verdict(self, comparison: Comparison) -> GateVerdict:
        """Holds a comparison against every limit that is set.

        Raises:
            InvalidInputError: The comparison lacks what a limit is about.
        """
        checks = []
        if self.margin is not None:
            checks.append(self._margin_check(comparison, self.margin))
        if self.drift is not None:
            checks.append(self._drift_check(comparison, self.drift))
        if self.jerk is not None:
            checks.append(self._jerk_check(comparison, self.jerk))
        return GateVerdict(
            passed=all(check.passed for check in checks),
            limits=GateLimits(margin=self.margin, drift=self.drift, jerk=self.jerk),
            checks=tuple(checks),
        )

    @staticmethod
    def _margin_check(comparison: Comparison, margin: float) -> GateCheck:
        paired = comparison.paired
        if paired is None:
            raise InvalidInputError("paired must be in the comparison, got none. Run whole episodes.")
        # Where it was looked at on the way, the interval that holds at all looks together is the one that counts.
        interval = comparison.stopping or paired
        reason = (
            f"success {paired.difference:+.1f} points [{interval.low:+.1f}, {interval.high:+.1f}], "
            f"n = {paired.n}; allowed: above {-100.0 * margin:+.1f}"
        )
        return GateCheck(name="margin", passed=interval.low > -100.0 * margin, reason=reason)

    @staticmethod
    def _drift_check(comparison: Comparison, drift: float) -> GateCheck:
        headline = comparison.drift.identical_states.headline
        if headline is None:
            raise InvalidInputError("drift must have been measured, got no states. Evaluate with drift states.")
        median = headline.position_mm.median
        reason = (
            f"median drift {median.value:.2f} mm [{median.low:.2f}, {median.high:.2f}] after "
            f"{headline.steps} steps, n = {headline.n}; allowed: {drift:g} mm"
        )
        return GateCheck(name="drift", passed=median.high <= drift, reason=reason)

    @staticmethod
    def _jerk_check(comparison: Comparison, jerk: float) -> GateCheck:
        if comparison.motion is None:
            raise InvalidInputError("motion must be in the comparison, got none. Run whole episodes.")
        entry = comparison.motion["rms_jerk"]
        change = entry.change
        if change is None:
            raise InvalidInputError("jerk must be defined, got a robot that never moved. Leave it out of the gate.")
        reason = (
            f"jerk {change.value:.3f} [{change.low:.3f}, {change.high:.3f}] of the baseline's, "
            f"n = {entry.n}; allowed: {jerk:g}"
        )
        return GateCheck(name="jerk", passed=change.high <= jerk, reason=reason)
