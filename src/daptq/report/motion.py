"""Metrics of motion with their units and definitions, and what their intervals show."""

from __future__ import annotations

from html import escape

from daptq.report.markup import MINUS, NOTHING, Json, Policies, absent, note, section, table

_TITLE = "Motion"

# Name, unit, definition, and whether the change is a difference (otherwise it is a ratio).
METRICS: dict[str, tuple[str, str, str, bool]] = {
    "rms_jerk": ("jerk, RMS", "m/s\N{SUPERSCRIPT THREE}", "third difference of the position, over an episode", False),
    "path_length": ("path length", "m", "sum of the distances between consecutive positions", False),
    "spectral_arc_length": (
        "smoothness, SPARC",
        "none",
        "spectral arc length of the speed; smooth is close to 0",
        True,
    ),
    "high_frequency_share": (
        "oscillation",
        "fraction",
        "share of the velocity's energy above a quarter of the control frequency",
        True,
    ),
    "chunk_jump": (
        "chunk jump",
        "ratio",
        "change of velocity where a chunk begins, over that inside; 1 does not show",
        False,
    ),
    "gripper_flips": ("gripper flips", "count", "changes between open and closed in an episode; means", True),
    "time_to_success": ("time to success", "s", "over episodes in which both succeed", False),
}


def motion_section(result: Json, policies: Policies) -> str:
    """One table per comparison."""
    parts = []
    for comparison in result["comparisons"]:
        motion = comparison.get("motion")
        if motion is None:
            continue
        against = policies.labels[comparison["against"]]
        rows = [_row(name, motion[name]) for name in motion]
        caption = f"{policies.labels[comparison['policy']]} against {against}: medians over episodes"
        header = ("metric", "unit", against, "policy", "change [95 %]", "reads", "n")
        parts.append(table(caption, header, rows, wide_first=True))
    if not parts:
        return section("motion", _TITLE, absent("Motion was not compared: that takes a baseline and whole episodes."))
    words = note(
        "Change: median (mean for counts) over episodes of policy / baseline, or of policy \N{MINUS SIGN} baseline "
        "where a sign is written. An interval that contains 1, or 0 for a difference, shows no difference."
    )
    return section("motion", _TITLE, "".join(parts) + words)


def _row(name: str, entry: Json) -> tuple[str, ...]:
    title, unit, definition, differs = METRICS.get(name, (name.replace("_", " "), "", "", False))
    head = f"{escape(title)}<small>{escape(definition)}</small>"
    if not entry["n"]:
        return head, escape(unit), NOTHING, NOTHING, NOTHING, "defined in no episode", "0"
    change = entry["change"]
    ends = f"[{_number(change['low'], signed=differs)}, {_number(change['high'], signed=differs)}]"
    neutral = 0.0 if differs else 1.0
    reads = "higher" if change["low"] > neutral else "lower" if change["high"] < neutral else "no difference shown"
    return (
        head,
        escape(unit),
        _number(entry["baseline"]),
        _number(entry["candidate"]),
        f"{_number(change['value'], signed=differs)} {ends}",
        reads,
        str(entry["n"]),
    )


def _number(value: float, *, signed: bool = False) -> str:
    """Three digits, no exponent for the sizes that motion has."""
    text = f"{value:+.3g}" if signed and value else f"{value:.3g}"
    return text.replace("-", MINUS)
