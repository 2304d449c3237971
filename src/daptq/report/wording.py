"""How numbers and names are written on the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Json = Mapping[str, Any]

MINUS = "\N{MINUS SIGN}"
NOTHING = "\N{EN DASH}"
TIMES = "\N{MULTIPLICATION SIGN}"
_SMALL = 0.01


def readable(name: str) -> str:
    """A name of the code in words."""
    return name.replace("_", " ")


def task_name(task: str) -> str:
    """The name of a task for people."""
    return readable(task).capitalize()


def count_of(count: int, singular: str) -> str:
    """A number with its noun."""
    return f"{count} {singular}" + ("" if count == 1 else "s")


def estimate(value: Json) -> str:
    """A value with its interval, three digits each."""
    return f"{short(value['value'])} [{short(value['low'])}, {short(value['high'])}]"


def short(value: float) -> str:
    """Three digits of a number at least 0; only an exact 0 is written as 0, what is below 0.01 as <0.01."""
    return f"{value:.3g}" if value == 0 or value >= _SMALL else f"<{_SMALL:g}"


def points(value: float) -> str:
    """A signed number of percentage points; rounding leaves no minus zero."""
    rounded = round(value, 1) + 0.0
    sign = "+" if rounded > 0 else MINUS if rounded < 0 else ""
    return f"{sign}{abs(rounded):.1f}"


def points_ends(value: Json) -> str:
    """The interval of a number of points."""
    return f"[{points(value['low'])}, {points(value['high'])}]"


def points_interval(value: Json) -> str:
    """A difference in points with its interval."""
    return f"{points(value['difference'])} {points_ends(value)}"
