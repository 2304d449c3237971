"""How numbers and names are written on the page."""

from __future__ import annotations

from daptq.metrics.success import Rate
from daptq.monitoring.summary import MonitorSummary
from daptq.statistics.estimate import Estimate

MINUS = "\N{MINUS SIGN}"
NOTHING = "\N{EN DASH}"
TIMES = "\N{MULTIPLICATION SIGN}"
_SMALL = 0.01
_MEBIBYTE = 2**20


def readable(name: str) -> str:
    """A name of the code in words."""
    return name.replace("_", " ")


def task_name(task: str) -> str:
    """The name of a task for people."""
    return readable(task).capitalize()


def count_of(count: int, singular: str) -> str:
    """A number with its noun."""
    return f"{count} {singular}" + ("" if count == 1 else "s")


def estimate(value: Estimate) -> str:
    """A value with its interval, three digits each."""
    return f"{short(value.value)} [{short(value.low)}, {short(value.high)}]"


def short(value: float) -> str:
    """Three digits of a number at least 0; only an exact 0 is written as 0, what is below 0.01 as <0.01."""
    return f"{value:.3g}" if value == 0 or value >= _SMALL else f"<{_SMALL:g}"


def points(value: float) -> str:
    """A signed number of percentage points; rounding leaves no minus zero."""
    rounded = round(value, 1) + 0.0
    sign = "+" if rounded > 0 else MINUS if rounded < 0 else ""
    return f"{sign}{abs(rounded):.1f}"


def points_ends(low: float, high: float) -> str:
    """The interval of a number of points."""
    return f"[{points(low)}, {points(high)}]"


def points_interval(value: float, low: float, high: float) -> str:
    """A number of points with its interval."""
    return f"{points(value)} {points_ends(low, high)}"


def rate_text(rate: Rate) -> str:
    """A success rate with its interval, in percent."""
    return f"{100 * rate.success_rate:.1f} % [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"


def mebibytes(count: int) -> str:
    """A number of bytes in MiB, two decimals."""
    return f"{count / _MEBIBYTE:.2f}"


def monitor_flag(monitor: MonitorSummary) -> str:
    """When a monitor flagged a shift, or how close it came to it."""
    count, at = len(monitor.episodes), monitor.flagged_at
    if at is None:
        most = max(one.statistic for one in monitor.episodes)
        return f"no shift in {count} episodes (evidence up to {most:.3g}, flag at {monitor.threshold:g})"
    return f"shift flagged after {at + 1} of {count} episodes"
