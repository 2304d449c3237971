"""Drift of the end-effector: how it grows after an identical state, and over whole episodes."""

from __future__ import annotations

from html import escape

from daptq.report.curves import Curve, growth_plot
from daptq.report.figures import Estimate
from daptq.report.markup import (
    NOTHING,
    Json,
    Policies,
    absent,
    count_of,
    estimate,
    legend,
    note,
    section,
    table,
)

_UNITS = (("position_mm", "mm", "Position"), ("rotation_deg", "deg", "Rotation"))
_WHOLE = ("episode RMS", "median of episodes", "until contact differs")
_TITLE = "Drift of the end-effector"


def drift_section(result: Json, policies: Policies) -> str:
    """Growth curves with their bands, and a table."""
    comparisons = result["comparisons"]
    if not comparisons:
        return section("drift", _TITLE, absent("No baseline was given, so there is nothing to drift from."))
    first = _branches(comparisons[0])
    parts = []
    if first["n"]:
        parts.append(
            f"<p>From {count_of(first['n'], 'state')} of {count_of(first['episodes'], 'full-precision episode')} every "
            "policy continues with the same noise. Lines are medians over states, bands their 95 % intervals; at "
            f"step 0 the drift is exactly 0.</p>{legend(policies, [one['policy'] for one in comparisons])}"
        )
        plots = "".join(_plot(result, policies, *unit) for unit in _UNITS)
        parts.append(f'<div class="charts">{plots}</div>')
    else:
        parts.append(absent("No state was saved, so there is no growth from identical states."))
    header = ("policy", *(f"after {count_of(entry['steps'], 'step')}" for entry in first["after_steps"]))
    rows = [(policies.marked(one["policy"]), *_cells(one)) for one in comparisons]
    caption = "Drift in mm, below it in deg: median after steps from identical states; over whole episodes"
    words = (
        "Episode RMS and its median: over whole episodes, in which both policies act alone. Until contact differs: "
        "over the steps before one policy first holds an object that the other does not."
    )
    parts.append(table(caption, (*header, *_WHOLE), rows))
    return section("drift", _TITLE, "".join(parts) + note(words))


def _plot(result: Json, policies: Policies, name: str, unit: str, what: str) -> str:
    curves, readings = [], []
    for comparison in result["comparisons"]:
        entries = _growth(comparison, name)
        curves.append(
            Curve(
                series=policies.marks[comparison["policy"]],
                places=(0.0, *(steps for steps, _ in entries)),
                estimates=(Estimate(value=0.0, low=0.0, high=0.0), *(Estimate(**value) for _, value in entries)),
            )
        )
        steps, last = entries[-1]
        label = policies.labels[comparison["policy"]]
        readings.append(f"{label}: {estimate(last)} {unit} after {count_of(int(steps), 'step')}")
    title = f"{what} drift [{unit}]"
    plot = growth_plot(curves, unit=unit, across="control steps", title=title, description="; ".join(readings) + ".")
    return f"<figure><figcaption>{what} drift</figcaption>{plot}</figure>"


def _growth(comparison: Json, name: str) -> list[tuple[float, Json]]:
    """Steps and medians; results of older versions hold a few steps only."""
    branches = _branches(comparison)
    if branches.get("growth"):
        return [(entry["steps"], entry[name]) for entry in branches["growth"]]
    return [(entry["steps"], entry[name]["median"]) for entry in branches["after_steps"]]


def _branches(comparison: Json) -> Json:
    branches: Json = comparison["drift"]["identical_states"]
    return branches


def _cells(comparison: Json) -> list[str]:
    cells = [
        _pair(entry["position_mm"]["median"], entry["rotation_deg"]["median"])
        for entry in _branches(comparison)["after_steps"]
    ]
    whole = comparison["drift"]["whole_episode"]
    if whole is None:
        return [*cells, NOTHING, NOTHING, NOTHING]
    names = ("rms", "median_of_episodes")
    cells += [_pair(whole["position_mm"][name], whole["rotation_deg"][name]) for name in names]
    alike = whole.get("until_contact_differs", {"n": 0})
    if not alike["n"]:
        return [*cells, NOTHING]
    steps = f"<small>{count_of(round(alike['steps']['value']), 'step')}, n = {alike['n']}</small>"
    return [*cells, f"{_pair(alike['position_mm'], alike['rotation_deg'])}<br>{steps}"]


def _pair(position: Json, rotation: Json) -> str:
    return f"{escape(estimate(position))}<br>{escape(estimate(rotation))}"
