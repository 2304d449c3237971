"""Small inline SVG figures on one line: marks, intervals, bars; places are percentages, so that they fit any width.

A series is told apart by the shape of its mark, by its dashes and by the pattern of its bars, and by its colour only in
addition.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

_SHAPES = (
    '<circle r="5.5"/>',
    '<rect x="-5" y="-5" width="10" height="10"/>',
    '<path d="M0,-7 L6.5,5 L-6.5,5 Z"/>',
    '<path d="M0,-7 L7,0 L0,7 L-7,0 Z"/>',
    '<path d="M-6,-6 L6,6 M-6,6 L6,-6" style="stroke-width:3"/>',
)
_DASHES = ("none", "7 4", "2 4", "10 3 2 3", "14 4")
# What a bar is filled with, on a square of 8: nothing but colour, slanted lines, dots, upright lines, a grid.
_PATTERNS = (
    '<rect width="8" height="8"/>',
    '<path d="M-2,2 L2,-2 M0,8 L8,0 M6,10 L10,6" style="stroke-width:2.5"/>',
    '<circle cx="2" cy="2" r="1.7"/><circle cx="6" cy="6" r="1.7"/>',
    '<path d="M2,0 V8 M6,0 V8" style="stroke-width:2"/>',
    '<path d="M0,4 H8 M4,0 V8" style="stroke-width:1.5"/>',
)
SERIES = len(_SHAPES)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with its interval, in the units of the figure."""

    value: float
    low: float
    high: float


def series_style() -> str:
    """CSS that gives each series its colour, its dashes and its pattern."""
    rules = []
    for index, dash in enumerate(_DASHES):
        colour = f"var(--series-{index})"
        rules.append(f".s{index} {{ stroke: {colour}; fill: {colour}; stroke-width: 2; }}")
        rules.append(f".s{index}.dashed {{ stroke-dasharray: {dash}; fill: none; }}")
        rules.append(f".s{index}.band {{ stroke: none; fill-opacity: .16; }}")
        rules.append(f".s{index}.bar {{ fill: url(#pattern-{index}); stroke-width: 1.5; }}")
    return "\n".join(rules)


def patterns() -> str:
    """The patterns that `bar` refers to; once per page."""
    tiles = "".join(
        f'<pattern id="pattern-{index}" width="8" height="8" patternUnits="userSpaceOnUse">'
        f'<g class="s{index}">{shape}</g></pattern>'
        for index, shape in enumerate(_PATTERNS)
    )
    return f'<svg width="0" height="0" class="defs" aria-hidden="true"><defs>{tiles}</defs></svg>'


def style(series: int) -> str:
    """The CSS class of a series; beyond the fifth they come again, hollow."""
    return f"s{series % SERIES}" + (" hollow" if series // SERIES % 2 else "")


def key(series: int) -> str:
    """The mark of a series, for legends and tables."""
    return f'<svg class="key" viewBox="-9 -9 18 18" aria-hidden="true">{mark(series)}</svg>'


def mark(series: int) -> str:
    """The mark of a series around the origin."""
    return f'<g class="{style(series)}">{_SHAPES[series % SERIES]}</g>'


def marked(percent: float, y: float, series: int) -> str:
    """The mark of a series at a place given in percent; a nested svg is the only element that can be moved so."""
    return f'<svg x="{percent:.2f}%" y="{y:.1f}" overflow="visible">{mark(series)}</svg>'


def interval_track(estimate: Estimate, *, series: int, low: float, high: float, lines: tuple[float, ...] = ()) -> str:
    """One horizontal line with an interval and a mark.

    Args:
        estimate: What to show.
        series: Which mark to use.
        low: Value at the left end of the track.
        high: Value at the right end.
        lines: Values at which vertical reference lines stand; the first is solid, others are dashed.
    """

    def place(value: float) -> float:
        return 100.0 * min(max((value - low) / (high - low), 0.0), 1.0)

    parts = ['<line class="axis" x1="0%" x2="100%" y1="12" y2="12"/>']
    for number, value in enumerate(lines):
        dashed = ' stroke-dasharray="3 3"' if number else ""
        parts.append(
            f'<line class="reference" x1="{place(value):.2f}%" x2="{place(value):.2f}%" y1="0" y2="24"{dashed}/>'
        )
    left, right = place(estimate.low), place(estimate.high)
    parts.append(f'<line class="{style(series)}" x1="{left:.2f}%" x2="{right:.2f}%" y1="12" y2="12"/>')
    parts += [
        f'<line class="{style(series)}" x1="{end:.2f}%" x2="{end:.2f}%" y1="7" y2="17"/>' for end in (left, right)
    ]
    parts.append(marked(place(estimate.value), 12.0, series))
    return f'<svg class="track" height="24" aria-hidden="true">{"".join(parts)}</svg>'


def scale(left: str, middle: str, right: str) -> str:
    """Labels under the ends and the middle of interval tracks."""
    places = ((left, "0%", "start"), (middle, "50%", "middle"), (right, "100%", "end"))
    parts = [
        f'<text class="soft" x="{x}" y="13" text-anchor="{side}">{escape(text)}</text>' for text, x, side in places
    ]
    return f'<svg class="track" height="18" aria-hidden="true">{"".join(parts)}</svg>'


def bar(value: float, largest: float, *, series: int | None) -> str:
    """One horizontal bar from zero; `largest` fills the width. Without a series it is an outline."""
    width = 0.0 if largest <= 0 else 100.0 * value / largest
    name = "plain" if series is None else f"{style(series)} bar"
    return (
        f'<svg class="track" height="22" aria-hidden="true"><rect class="{name}" x="0" y="3" '
        f'width="{width:.2f}%" height="16"/></svg>'
    )
