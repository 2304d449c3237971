"""Figures with two axes: how a value grows, and a value of many items on a logarithmic axis.

Horizontal places are percentages and vertical ones pixels, so that text keeps its size however wide the figure is. What
has to be one shape (bands, lines) lives in a nested svg that stretches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from daptq.report.figures import Estimate, marked, style

_HEIGHT = 260
_BOTTOM = 215.0
_TOP = 26.0
_LEFT = 11.0
_RIGHT = 97.0


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Values of one series at ordered places.

    Attributes:
        series: Number of its mark.
        places: Where the values stand, ascending, at least 0.
        estimates: One value with its interval per place.
    """

    series: int
    places: Sequence[float]
    estimates: Sequence[Estimate]


@dataclass(frozen=True, kw_only=True)
class Point:
    """One item of a scatter.

    Attributes:
        value: Its value, above 0.
        solid: Whether its mark is filled.
        group: Name of the group of neighbours that it belongs to.
        title: What is shown when it is pointed at.
    """

    value: float
    solid: bool
    group: str
    title: str


def growth_plot(curves: Sequence[Curve], *, unit: str, across: str, title: str, description: str) -> str:
    """Values with their bands, one line per series, from 0.

    Args:
        curves: What to show.
        unit: Unit of the values, written at the axis.
        across: What the horizontal axis counts.
        title: Name of the figure.
        description: What it shows, for readers who cannot see it.
    """
    largest = max((estimate.high for curve in curves for estimate in curve.estimates), default=0.0) or 1.0
    furthest = max((place for curve in curves for place in curve.places), default=1.0) or 1.0
    ticks = _ticks(largest)

    def height(value: float) -> float:
        return _BOTTOM - (_BOTTOM - _TOP) * value / ticks[-1]

    def along(place: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * place / furthest

    parts = [f'<text class="soft" x="0" y="13">{escape(unit)}</text>']
    parts += _levels([(height(tick), f"{tick:g}") for tick in ticks])
    for place in _whole_ticks(furthest):
        parts.append(
            f'<text class="soft" x="{along(place):.2f}%" y="{_BOTTOM + 19}" text-anchor="middle">{place}</text>'
        )
    label = f"{escape(across)} \N{RIGHTWARDS ARROW}"
    parts.append(f'<text class="soft" x="{_RIGHT}%" y="{_BOTTOM + 38}" text-anchor="end">{label}</text>')
    shapes = []
    for curve in curves:
        pairs = list(zip(curve.places, curve.estimates, strict=True))
        upper = [f"{along(place):.2f},{height(one.high):.1f}" for place, one in pairs]
        lower = [f"{along(place):.2f},{height(one.low):.1f}" for place, one in reversed(pairs)]
        middle = [f"{along(place):.2f},{height(one.value):.1f}" for place, one in pairs]
        name = style(curve.series)
        shapes.append(f'<polygon class="{name} band" points="{" ".join(upper + lower)}"/>')
        shapes.append(f'<polyline class="{name} dashed" points="{" ".join(middle)}"/>')
    parts.append(_stretched(shapes))
    for curve in curves:
        pairs = list(zip(curve.places, curve.estimates, strict=True))[:0:-1]  # from the right; at the origin all meet
        every = max(1, len(pairs) // 4)
        parts += [marked(along(place), height(one.value), curve.series) for place, one in pairs[::every]]
    return _figure(parts, title, description)


def scatter_plot(points: Sequence[Point], *, unit: str, title: str, description: str) -> str:
    """Items side by side in their order, their values on a logarithmic axis, and a line between groups.

    Args:
        points: What to show, at least one.
        unit: Unit of the values, written at the axis.
        title: Name of the figure.
        description: What it shows, for readers who cannot see it.
    """
    lowest = math.floor(math.log10(min(point.value for point in points)))
    highest = max(math.ceil(math.log10(max(point.value for point in points))), lowest + 1)
    every = math.ceil((highest - lowest) / 5)

    def height(value: float) -> float:
        return _BOTTOM - (_BOTTOM - _TOP) * (math.log10(value) - lowest) / (highest - lowest)

    def along(place: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * (place + 0.5) / len(points)

    parts = [f'<text class="soft" x="0" y="13">{escape(unit)}</text>']
    parts += _levels([(height(10.0**power), _power_of_ten(power)) for power in range(lowest, highest + 1, every)])
    names = [point.group for point in points]
    starts = [place for place, name in enumerate(names) if place == 0 or names[place - 1] != name]
    for row, (start, end) in enumerate(zip(starts, [*starts[1:], len(points)], strict=True)):
        if start:
            edge = along(start - 0.5)
            ends = f'y1="{_TOP:.1f}" y2="{_BOTTOM + 40}"'
            parts.append(f'<line class="reference" x1="{edge:.2f}%" x2="{edge:.2f}%" {ends} stroke-dasharray="3 3"/>')
        # Names of narrow groups would run into each other on one line.
        middle, y = along((start + end - 1) / 2), _BOTTOM + 18 + 18 * (row % 2)
        parts.append(
            f'<text class="soft" x="{middle:.2f}%" y="{y:.1f}" text-anchor="middle">{escape(names[start])}</text>'
        )
    for place, point in enumerate(points):
        circle = (
            f'<circle r="3.6" class="{"dot" if point.solid else "ring"}"><title>{escape(point.title)}</title></circle>'
        )
        where = f'x="{along(place):.2f}%" y="{height(point.value):.1f}"'
        parts.append(f'<svg {where} overflow="visible">{circle}</svg>')
    return _figure(parts, title, description)


def _figure(parts: Sequence[str], title: str, description: str) -> str:
    text = f"<title>{escape(title)}</title><desc>{escape(description)}</desc>"
    label = escape(f"{title}. {description}")
    return f'<svg class="plot" height="{_HEIGHT}" role="img" aria-label="{label}">{text}{"".join(parts)}</svg>'


def _levels(ticks: Sequence[tuple[float, str]]) -> list[str]:
    """Horizontal lines with their labels."""
    parts = []
    for level, label in ticks:
        parts.append(f'<line class="axis" x1="{_LEFT}%" x2="{_RIGHT}%" y1="{level:.1f}" y2="{level:.1f}"/>')
        parts.append(
            f'<text class="soft" x="{_LEFT - 1}%" y="{level + 4:.1f}" text-anchor="end">{escape(label)}</text>'
        )
    return parts


def _power_of_ten(power: int) -> str:
    """A number of at most six characters."""
    if abs(power) < 4:
        return f"{10.0**power:g}"
    raised = str.maketrans(
        "-0123456789", "\N{SUPERSCRIPT MINUS}\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079"
    )
    return "10" + str(power).translate(raised)


def _stretched(shapes: Sequence[str]) -> str:
    """Shapes whose horizontal places are percentages of the figure and whose lines keep their width."""
    return (
        f'<svg class="stretched" x="0" y="0" width="100%" height="{_HEIGHT}" viewBox="0 0 100 {_HEIGHT}" '
        f'preserveAspectRatio="none">{"".join(shapes)}</svg>'
    )


def _whole_ticks(furthest: float) -> list[int]:
    """At most five whole numbers from 0."""
    step = max(1, math.ceil(furthest / 4))
    return list(range(0, math.floor(furthest) + 1, step))


def _ticks(largest: float) -> list[float]:
    """Three to six round values from 0 to at least `largest`."""
    step = 10.0**-9
    while 5 * step < largest:
        step *= 2.5 if f"{step:e}".startswith("2") else 2.0
    count = 1
    while count * step < largest * (1 - 1e-9):
        count += 1
    return [round(index * step, 12) for index in range(count + 1)]
