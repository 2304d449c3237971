"""Figures on one line: intervals and bars as inline SVG. Places are percentages, so that they fit any width."""

from __future__ import annotations

from markupsafe import Markup

from daptq.report.marks import placed_mark, style
from daptq.statistics.estimate import Estimate


def interval_track(
    estimate: Estimate, *, series: int, low: float, high: float, lines: tuple[float, ...] = ()
) -> Markup:
    """One horizontal line with an interval and a mark.

    Args:
        estimate: What to show, in the units of the figure; what lies outside of the track is drawn at its end.
        series: Which mark to use.
        low: Value at the left end of the track.
        high: Value at the right end.
        lines: Values at which vertical reference lines are drawn; the first is solid, others are dashed.
    """

    def place(value: float) -> float:
        return 100.0 * min(max((value - low) / (high - low), 0.0), 1.0)

    parts = [Markup('<line class="axis" x1="0%" x2="100%" y1="12" y2="12"/>')]
    solid = Markup('<line class="reference" x1="{0:.2f}%" x2="{0:.2f}%" y1="0" y2="24"/>')
    dashed = Markup('<line class="reference" x1="{0:.2f}%" x2="{0:.2f}%" y1="0" y2="24" stroke-dasharray="3 3"/>')
    parts += [(dashed if number else solid).format(place(value)) for number, value in enumerate(lines)]
    left, right, name = place(estimate.low), place(estimate.high), style(series)
    parts.append(Markup('<line class="{}" x1="{:.2f}%" x2="{:.2f}%" y1="12" y2="12"/>').format(name, left, right))
    end = Markup('<line class="{0}" x1="{1:.2f}%" x2="{1:.2f}%" y1="7" y2="17"/>')
    parts += [end.format(name, left), end.format(name, right)]
    parts.append(placed_mark(place(estimate.value), 12.0, series))
    return _track(24, parts)


def scale(left: str, middle: str, right: str) -> Markup:
    """Labels under the ends and the middle of interval tracks."""
    places = ((left, "0%", "start"), (middle, "50%", "middle"), (right, "100%", "end"))
    text = Markup('<text class="soft" x="{}" y="13" text-anchor="{}">{}</text>')
    return _track(18, [text.format(x, side, label) for label, x, side in places])


def bar(value: float, largest: float, *, series: int | None) -> Markup:
    """One horizontal bar from zero; `largest` fills the width. Without a series it is an outline."""
    width = 0.0 if largest <= 0 else 100.0 * value / largest
    name = "plain" if series is None else f"{style(series)} bar"
    return _track(22, [Markup('<rect class="{}" x="0" y="3" width="{:.2f}%" height="16"/>').format(name, width)])


def _track(height: int, parts: list[Markup]) -> Markup:
    inside = Markup().join(parts)
    return Markup('<svg class="track" height="{}" aria-hidden="true">{}</svg>').format(height, inside)
