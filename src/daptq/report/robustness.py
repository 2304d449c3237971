"""Success on variants of the environment, and the robustness gap: how much more quantization costs there."""

from __future__ import annotations

from html import escape

from daptq.report.figures import Estimate, interval_track
from daptq.report.markup import Json, Policies, absent, note, points, row, scale_row, section, table
from daptq.report.table import rate_text

_TITLE = "Robustness"


def robustness_section(result: Json, policies: Policies) -> str:
    """One line per variant and candidate, and a table of rates."""
    variants = result.get("variants")
    if not variants:
        return section("robustness", _TITLE, absent("No variant was run: daptq evaluate --variant all runs every one."))
    gaps = [(entry["variant"].replace("_", " "), entry["robustness_gap"]) for entry in variants]
    if len(variants) > 1:
        gaps.append(("all variants", result["robustness_gap"]))
    reach = (
        max((abs(one[end]) for _, entries in gaps for one in entries for end in ("low", "high")), default=0.0) or 1.0
    )
    parts = []
    for name, entries in gaps:
        rows = "".join(_gap(one, policies, reach) for one in entries)
        parts.append(f'<div class="group"><h3>{escape(name.capitalize())}</h3>{rows}</div>' if rows else "")
    if any(parts):
        parts.append(scale_row(points(-reach), "0", points(reach)))
        parts.append(
            note(
                "Robustness gap [points]: the difference to the baseline on the variant minus that in the nominal "
                "scene, with its 95 % interval. Below 0, quantization costs more on the variant."
            )
        )
    names = [policy["name"] for policy in result["policies"]]
    cells = [("nominal", "the scene that policies were trained in", *map(rate_text, result["policies"]))]
    cells += [
        (escape(entry["variant"].replace("_", " ")), escape(entry["description"]), *map(rate_text, entry["policies"]))
        for entry in variants
    ]
    caption = f"Success on variants, n = {result['episodes']} each"
    rates = table(caption, ("condition", "what changes", *(policies.labels[name] for name in names)), cells)
    return section("robustness", _TITLE, "".join(parts) + rates)


def _gap(gap: Json, policies: Policies, reach: float) -> str:
    shown = Estimate(value=gap["value"], low=gap["low"], high=gap["high"])
    mark = policies.marks[gap["policy"]]
    track = interval_track(shown, series=mark, low=-reach, high=reach, lines=(0.0,))
    text = f"{points(gap['value'])} [{points(gap['low'])}, {points(gap['high'])}]"
    return row(policies.label(gap["policy"]), track, text)
