"""Small inline SVG figures. Horizontal places are percentages, so text keeps its size on a phone.

A series is told apart by the shape of its mark and its dash pattern, and by its colour only in addition.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

_SHAPES = (
    '<circle r="5.5"/>',
    '<rect x="-5" y="-5" width="10" height="10"/>',
    '<path d="M0,-7 L6.5,5 L-6.5,5 Z"/>',
    '<path d="M0,-7 L7,0 L0,7 L-7,0 Z"/>',
    '<path d="M-6,-6 L6,6 M-6,6 L6,-6" style="stroke-width:3"/>',
)
_DASHES = ("none", "7 4", "2 4", "10 3 2 3", "14 4")
_PLOT_HEIGHT = 230
_BOTTOM = 195
_TOP = 22
_MARGIN = 14.0


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with its interval, in the units of the figure."""

    value: float
    low: float
    high: float


def series_style() -> str:
    """CSS that gives each series its colour and dash pattern."""
    rules = []
    for index, dash in enumerate(_DASHES):
        colour = f"var(--series-{index})"
        rules.append(f"svg .s{index} {{ stroke: {colour}; fill: {colour}; stroke-width: 2; }}")
        rules.append(f"svg line.s{index}.dashed {{ stroke-dasharray: {dash}; }}")
    return "\n".join(rules)


def key(series: int) -> str:
    """The mark of a series, for legends and tables."""
    return f'<svg class="key" viewBox="-9 -9 18 18" aria-hidden="true">{_shape(series)}</svg>'


def interval_track(estimate: Estimate, *, series: int, low: float, high: float, zero: float | None = None) -> str:
    """One horizontal line with an interval and a mark.

    Args:
        estimate: What to show.
        series: Which mark to use.
        low: Value at the left end of the track.
        high: Value at the right end.
        zero: Value at which a vertical reference line stands.
    """

    def place(value: float) -> float:
        return 100.0 * min(max((value - low) / (high - low), 0.0), 1.0)

    parts = ['<line class="axis" x1="0%" x2="100%" y1="12" y2="12"/>']
    if zero is not None:
        ends = f'x1="{place(zero):.2f}%" x2="{place(zero):.2f}%"'
        parts.append(f'<line class="axis" style="stroke-width:3" {ends} y1="0" y2="24"/>')
    left, right = place(estimate.low), place(estimate.high)
    parts.append(f'<line class="s{series % len(_SHAPES)}" x1="{left:.2f}%" x2="{right:.2f}%" y1="12" y2="12"/>')
    parts += [
        f'<line class="s{series % len(_SHAPES)}" x1="{end:.2f}%" x2="{end:.2f}%" y1="7" y2="17"/>'
        for end in (left, right)
    ]
    parts.append(_marked(place(estimate.value), 12.0, series))
    return f'<svg height="24" aria-hidden="true">{"".join(parts)}</svg>'


def scale(left: str, middle: str, right: str) -> str:
    """Labels under the ends and the middle of interval tracks."""
    places = ((left, "0%", "start"), (middle, "50%", "middle"), (right, "100%", "end"))
    parts = [
        f'<text class="soft" x="{x}" y="13" text-anchor="{side}">{escape(text)}</text>' for text, x, side in places
    ]
    return f'<svg height="18" aria-hidden="true">{"".join(parts)}</svg>'


def bar(value: float, largest: float, *, series: int) -> str:
    """One horizontal bar from zero; `largest` fills the width."""
    width = 0.0 if largest <= 0 else 100.0 * value / largest
    return (
        f'<svg height="18" aria-hidden="true"><rect class="s{series % len(_SHAPES)}" x="0" y="2" '
        f'width="{width:.2f}%" height="14" style="stroke:none"/></svg>'
    )


def growth_plot(
    lines: Sequence[tuple[int, Sequence[Estimate]]], *, labels: Sequence[str], unit: str, description: str
) -> str:
    """Values with intervals at a few ordered places, one line per series.

    Args:
        lines: Per series its number and one estimate per place.
        labels: Label of each place, from left to right.
        unit: Unit of the values, written at the axis.
        description: What the figure shows, for readers who cannot see it.
    """
    largest = max((estimate.high for _, estimates in lines for estimate in estimates), default=0.0) or 1.0
    ticks = _ticks(largest)

    def height(value: float) -> float:
        return _BOTTOM - (_BOTTOM - _TOP) * value / ticks[-1]

    def across(place: int, shift: int = 0) -> float:
        spread = (100.0 - 2 * _MARGIN) / max(1, len(labels) - 1)
        return _MARGIN + place * spread + 1.6 * (shift - (len(lines) - 1) / 2)

    parts = [f'<text class="soft" x="0" y="12">{escape(unit)}</text>']
    for tick in ticks:
        level = height(tick)
        parts.append(f'<line class="axis" x1="9%" x2="100%" y1="{level:.1f}" y2="{level:.1f}"/>')
        parts.append(f'<text class="soft" x="8%" y="{level + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for place, label in enumerate(labels):
        parts.append(f'<text x="{across(place):.2f}%" y="{_BOTTOM + 22}" text-anchor="middle">{escape(label)}</text>')
    for shift, (series, estimates) in enumerate(lines):
        style = f"s{series % len(_SHAPES)}"
        points = [(across(place, shift), height(estimate.value)) for place, estimate in enumerate(estimates)]
        for (x1, y1), (x2, y2) in pairwise(points):
            parts.append(f'<line class="{style} dashed" x1="{x1:.2f}%" y1="{y1:.1f}" x2="{x2:.2f}%" y2="{y2:.1f}"/>')
        for (x, y), estimate in zip(points, estimates, strict=True):
            ends = f'y1="{height(estimate.low):.1f}" y2="{height(estimate.high):.1f}"'
            parts.append(f'<line class="{style}" x1="{x:.2f}%" x2="{x:.2f}%" {ends}/>')
            parts.append(_marked(x, y, series))
    attributes = f'height="{_PLOT_HEIGHT}" role="img" aria-label="{escape(description)}"'
    return f'<svg class="plot" {attributes}>{"".join(parts)}</svg>'


def _shape(series: int) -> str:
    return f'<g class="s{series % len(_SHAPES)}">{_SHAPES[series % len(_SHAPES)]}</g>'


def _marked(percent: float, y: float, series: int) -> str:
    """The mark of a series at a place given in percent; a nested svg is the only element that can be moved so."""
    return f'<svg x="{percent:.2f}%" y="{y:.1f}" overflow="visible">{_shape(series)}</svg>'


def _ticks(largest: float) -> list[float]:
    """Three to six round values from 0 to at least `largest`."""
    step = 10.0**-9
    while 5 * step < largest:
        step *= 2.5 if f"{step:e}".startswith("2") else 2.0
    count = 1
    while count * step < largest * (1 - 1e-9):
        count += 1
    return [round(index * step, 12) for index in range(count + 1)]
