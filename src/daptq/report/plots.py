"""Figures with two axes as inline SVG: how a value grows, and a value of many items on a logarithmic axis.

Horizontal places are percentages and vertical ones pixels, so that text keeps its size however wide the figure is.
Shapes that must be one piece (bands, lines) are in a nested svg that stretches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from daptq.report.marks import placed_mark, style
from daptq.statistics.estimate import Estimate

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


def growth_plot(curves: Sequence[Curve], *, unit: str, across: str, title: str, description: str) -> Markup:
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

    parts = [_unit(unit), *_levels([(height(tick), f"{tick:g}") for tick in ticks])]
    parts += [_label(along(place), _BOTTOM + 19, "middle", str(place)) for place in _whole_ticks(furthest)]
    parts.append(_label(_RIGHT, _BOTTOM + 38, "end", f"{across} \N{RIGHTWARDS ARROW}"))
    shapes = []
    for curve in curves:
        pairs = list(zip(curve.places, curve.estimates, strict=True))
        upper = [f"{along(place):.2f},{height(one.high):.1f}" for place, one in pairs]
        lower = [f"{along(place):.2f},{height(one.low):.1f}" for place, one in reversed(pairs)]
        middle = [f"{along(place):.2f},{height(one.value):.1f}" for place, one in pairs]
        name = style(curve.series)
        shapes.append(Markup('<polygon class="{} band" points="{}"/>').format(name, " ".join(upper + lower)))
        shapes.append(Markup('<polyline class="{} dashed" points="{}"/>').format(name, " ".join(middle)))
    parts.append(_stretched(shapes))
    for curve in curves:
        pairs = list(zip(curve.places, curve.estimates, strict=True))[:0:-1]  # from the right; at the origin all meet
        every = max(1, len(pairs) // 4)
        parts += [placed_mark(along(place), height(one.value), curve.series) for place, one in pairs[::every]]
    return _figure(parts, title, description)


def scatter_plot(points: Sequence[Point], *, unit: str, title: str, description: str) -> Markup:
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

    levels = [(height(10.0**power), _power_of_ten(power)) for power in range(lowest, highest + 1, every)]
    parts = [_unit(unit), *_levels(levels)]
    names = [point.group for point in points]
    starts = [place for place, name in enumerate(names) if place == 0 or names[place - 1] != name]
    edge = Markup('<line class="reference" x1="{0:.2f}%" x2="{0:.2f}%" y1="{1:.1f}" y2="{2}" stroke-dasharray="3 3"/>')
    for row, (start, end) in enumerate(zip(starts, [*starts[1:], len(points)], strict=True)):
        if start:
            parts.append(edge.format(along(start - 0.5), _TOP, _BOTTOM + 40))
        # Names of narrow groups would run into each other on one line.
        parts.append(_label(along((start + end - 1) / 2), _BOTTOM + 18 + 18 * (row % 2), "middle", names[start]))
    circle = Markup(
        '<svg x="{:.2f}%" y="{:.1f}" overflow="visible"><circle r="3.6" class="{}"><title>{}</title></circle></svg>'
    )
    for place, point in enumerate(points):
        shape = "dot" if point.solid else "ring"
        parts.append(circle.format(along(place), height(point.value), shape, point.title))
    return _figure(parts, title, description)


def _figure(parts: Sequence[Markup], title: str, description: str) -> Markup:
    figure = Markup(
        '<svg class="plot" height="{height}" role="img" aria-label="{title}. {description}">'
        "<title>{title}</title><desc>{description}</desc>{parts}</svg>"
    )
    return figure.format(height=_HEIGHT, title=title, description=description, parts=Markup().join(parts))


def _unit(unit: str) -> Markup:
    """The unit of the values, above their axis."""
    return Markup('<text class="soft" x="0" y="13">{}</text>').format(unit)


def _label(percent: float, y: float, anchor: str, text: str) -> Markup:
    label = Markup('<text class="soft" x="{:.2f}%" y="{:.1f}" text-anchor="{}">{}</text>')
    return label.format(percent, y, anchor, text)


def _levels(ticks: Sequence[tuple[float, str]]) -> list[Markup]:
    """Horizontal lines with their labels."""
    line = Markup('<line class="axis" x1="{}%" x2="{}%" y1="{level:.1f}" y2="{level:.1f}"/>')
    parts = []
    for level, label in ticks:
        parts.append(line.format(_LEFT, _RIGHT, level=level))
        parts.append(_label(_LEFT - 1, level + 4, "end", label))
    return parts


def _power_of_ten(power: int) -> str:
    """A number of at most six characters."""
    if abs(power) < 4:
        return f"{10.0**power:g}"
    raised = str.maketrans(
        "-0123456789", "\N{SUPERSCRIPT MINUS}\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079"
    )
    return "10" + str(power).translate(raised)


def _stretched(shapes: Sequence[Markup]) -> Markup:
    """Shapes whose horizontal places are percentages of the figure and whose lines keep their width."""
    stretched = Markup(
        '<svg class="stretched" x="0" y="0" width="100%" height="{0}" viewBox="0 0 100 {0}" '
        'preserveAspectRatio="none">{1}</svg>'
    )
    return stretched.format(_HEIGHT, Markup().join(shapes))


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
