"""Figures: marks stand where the numbers say, axes cover them, and series differ by more than colour."""

from __future__ import annotations

import re

import pytest

from daptq.report.elements import Table
from daptq.report.marks import SERIES, key, patterns, series_style
from daptq.report.page import templates
from daptq.report.plots import Curve, Point, growth_plot, scatter_plot
from daptq.report.tracks import bar, interval_track
from daptq.report.wording import estimate, points
from daptq.statistics.estimate import Estimate


def test_marks_stand_where_the_numbers_say() -> None:
    track = interval_track(Estimate(value=0.5, low=0.25, high=0.75), series=0, low=0.0, high=1.0)
    assert 'x1="25.00%" x2="75.00%"' in track
    assert '<svg x="50.00%"' in track
    clipped = interval_track(Estimate(value=2.0, low=-1.0, high=3.0), series=0, low=0.0, high=1.0)
    assert 'x1="0.00%" x2="100.00%"' in clipped
    lines = interval_track(Estimate(value=0.0, low=0.0, high=0.0), series=0, low=-1.0, high=1.0, lines=(0.0, -0.5))
    assert re.findall(r'class="reference" x1="([^"]+)"', lines) == ["50.00%", "25.00%"]


def test_series_differ_by_shape_dashes_and_pattern() -> None:
    shapes = [re.sub(r's\d( hollow)?"', "", key(series)) for series in range(SERIES)]
    assert len(set(shapes)) == SERIES
    assert len({key(series) for series in range(2 * SERIES)}) == 2 * SERIES  # they come again, hollow
    assert len(set(re.findall(r"stroke-dasharray: ([^;]+)", series_style()))) == SERIES
    tiles = re.findall(r'<pattern [^>]+><g class="s\d">(.*?)</g>', patterns())
    assert len(set(tiles)) == len(tiles) == SERIES
    assert 'class="s1 bar"' in bar(1.0, 2.0, series=1)
    assert 'width="50.00%"' in bar(1.0, 2.0, series=None)
    assert 'width="0.00%"' in bar(0.0, 0.0, series=0)


def test_only_an_exact_zero_is_shown_as_zero() -> None:
    assert estimate(Estimate(value=0.0, low=0.0, high=1e-9)) == "0 [0, <0.01]"
    assert estimate(Estimate(value=0.01, low=0.0099, high=123.456)) == "0.01 [<0.01, 123]"
    assert [points(value) for value in (-0.04, 0.0, 1.25, -7.26)] == ["0.0", "0.0", "+1.2", "\N{MINUS SIGN}7.3"]


@pytest.mark.parametrize("largest", [0.0, 1e-7, 0.031, 0.99, 1.0, 7.2, 183.0, 1e6])
def test_the_axis_covers_the_largest_value_with_few_ticks(largest: float) -> None:
    curve = Curve(series=1, places=(16.0,), estimates=(Estimate(value=largest, low=0.0, high=largest),))
    plot = growth_plot([curve], unit="mm", across="steps", title="Drift", description="drift")
    ticks = [float(tick) for tick in re.findall(r'text-anchor="end">([\d.e+-]+)<', plot)]
    assert ticks[0] == 0.0
    assert ticks[-1] >= largest
    assert 2 <= len(ticks) <= 6
    heights = [float(y) for y in re.findall(r'<svg x="[^"]+" y="([\d.]+)" overflow', plot)]
    assert all(0 <= y <= 260 for y in heights)


def test_a_band_has_the_ends_of_the_intervals() -> None:
    estimates = (Estimate(value=0.0, low=0.0, high=0.0), Estimate(value=2.0, low=1.0, high=4.0))
    curve = Curve(series=2, places=(0.0, 8.0), estimates=estimates)
    plot = growth_plot([curve], unit="mm", across="steps", title="Drift", description="from 0 to 2 mm")
    (band,) = re.findall(r'class="s2 band" points="([^"]+)"', plot)
    (line,) = re.findall(r'class="s2 dashed" points="([^"]+)"', plot)
    # From 215 px at 0 to 26 px at 4, the last tick; from 11 % to 97 % across.
    assert band.split() == ["11.00,215.0", "97.00,26.0", "97.00,167.8", "11.00,215.0"]
    assert line.split() == ["11.00,215.0", "97.00,120.5"]
    assert "<title>Drift</title><desc>from 0 to 2 mm</desc>" in plot


def test_items_stand_on_a_logarithmic_axis() -> None:
    values = ((1e-4, "a"), (1e-2, "a"), (1.0, "b"))
    items = [Point(value=value, solid=group == "a", group=group, title=f"{value}") for value, group in values]
    plot = scatter_plot(items, unit="mm", title="Sensitivity", description="three layers")
    heights = [float(y) for y in re.findall(r'y="([\d.]+)" overflow="visible"><circle', plot)]
    assert heights == pytest.approx([215.0, (215 + 26) / 2, 26.0])
    assert re.findall(r'class="(dot|ring)"', plot) == ["dot", "dot", "ring"]
    assert plot.count("stroke-dasharray") == 1  # one line between two groups
    assert re.findall(r'<text class="soft"[^>]+middle">([ab])<', plot) == ["a", "b"]


def test_one_item_has_an_axis() -> None:
    plot = scatter_plot([Point(value=1.0, solid=True, group="a", title="1")], unit="", title="t", description="d")
    assert 'y="215.0" overflow' in plot


def test_powers_of_ten_fit_beside_the_axis() -> None:
    items = [Point(value=value, solid=True, group="a", title="") for value in (1e-5, 1e-1)]
    plot = scatter_plot(items, unit="", title="t", description="d")
    labels = re.findall(r'text-anchor="end">([^<]+)<', plot)
    assert labels == ["10\u207b\u2075", "10\u207b\u2074", "0.001", "0.01", "0.1"]


def drawn(table: Table) -> str:
    """A table as the page shows it."""
    return templates().from_string('{% from "elements.html" import table %}{{ table(one) }}').render(one=table)


def test_words_stand_left_and_numbers_right() -> None:
    html = drawn(Table(caption="c", header=("name", "word", "number"), rows=[("1", "lost", "7"), ("2", "won", "8")]))
    assert html.count('<td class="words">') == 2
    assert '<th scope="col" class="words">word</th><th scope="col">number</th>' in html
    assert "<th" in drawn(Table(caption="c", header=("name", "word"), rows=[]))
