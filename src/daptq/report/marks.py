"""Marks, dashes and patterns by which series are told apart; their colours differ only in addition."""

from __future__ import annotations

from markupsafe import Markup

_SHAPES = (
    Markup('<circle r="5.5"/>'),
    Markup('<rect x="-5" y="-5" width="10" height="10"/>'),
    Markup('<path d="M0,-7 L6.5,5 L-6.5,5 Z"/>'),
    Markup('<path d="M0,-7 L7,0 L0,7 L-7,0 Z"/>'),
    Markup('<path d="M-6,-6 L6,6 M-6,6 L6,-6" style="stroke-width:3"/>'),
)
_DASHES = ("none", "7 4", "2 4", "10 3 2 3", "14 4")
# What a bar is filled with, on a square of 8: nothing but colour, slanted lines, dots, upright lines, a grid.
_PATTERNS = (
    Markup('<rect width="8" height="8"/>'),
    Markup('<path d="M-2,2 L2,-2 M0,8 L8,0 M6,10 L10,6" style="stroke-width:2.5"/>'),
    Markup('<circle cx="2" cy="2" r="1.7"/><circle cx="6" cy="6" r="1.7"/>'),
    Markup('<path d="M2,0 V8 M6,0 V8" style="stroke-width:2"/>'),
    Markup('<path d="M0,4 H8 M4,0 V8" style="stroke-width:1.5"/>'),
)
SERIES = len(_SHAPES)


def series_style() -> Markup:
    """CSS that gives each series its colour, its dashes and its pattern."""
    rules = []
    for index, dash in enumerate(_DASHES):
        colour = f"var(--series-{index})"
        rules.append(f".s{index} {{ stroke: {colour}; fill: {colour}; stroke-width: 2; }}")
        rules.append(f".s{index}.dashed {{ stroke-dasharray: {dash}; fill: none; }}")
        rules.append(f".s{index}.band {{ stroke: none; fill-opacity: .16; }}")
        rules.append(f".s{index}.bar {{ fill: url(#pattern-{index}); stroke-width: 1.5; }}")
    return Markup("\n").join(rules)


def patterns() -> Markup:
    """The patterns that bars are filled with; once per page."""
    tile = Markup(
        '<pattern id="pattern-{0}" width="8" height="8" patternUnits="userSpaceOnUse"><g class="s{0}">{1}</g></pattern>'
    )
    tiles = Markup().join(tile.format(index, shape) for index, shape in enumerate(_PATTERNS))
    return Markup('<svg width="0" height="0" class="defs" aria-hidden="true"><defs>{}</defs></svg>').format(tiles)


def style(series: int) -> str:
    """The CSS class of a series; after the fifth, the marks repeat, hollow."""
    return f"s{series % SERIES}" + (" hollow" if series // SERIES % 2 else "")


def key(series: int) -> Markup:
    """The mark of a series, for legends and tables."""
    return Markup('<svg class="key" viewBox="-9 -9 18 18" aria-hidden="true">{}</svg>').format(_mark(series))


def placed_mark(percent: float, y: float, series: int) -> Markup:
    """The mark of a series in a figure.

    Args:
        percent: Horizontal place in percent of the figure; only a nested svg can be placed in percent.
        y: Vertical place [px].
        series: Number of the series.
    """
    return Markup('<svg x="{:.2f}%" y="{:.1f}" overflow="visible">{}</svg>').format(percent, y, _mark(series))


def _mark(series: int) -> Markup:
    """The mark of a series around the origin."""
    return Markup('<g class="{}">{}</g>').format(style(series), _SHAPES[series % SERIES])
