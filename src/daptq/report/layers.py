"""The bit map by role and layer, and the sensitivity that the plan went by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape
from itertools import groupby

from daptq.report.curves import Point, scatter_plot
from daptq.report.markup import Json, Policies, absent, count_of, note, section, table

_LOW_BITS = 4
_MIDDLE_BITS = 8
_KEPT_BITS = 16
_MOST_SENSITIVE = 10

# Axis and meaning of a score, by the method that gave it.
_SCORES = {
    "phi": ("\N{GREEK SMALL LETTER PHI}", "the paper's sensitivity \N{GREEK SMALL LETTER PHI}"),
    "rounding": (
        "mm\N{SUPERSCRIPT TWO}",
        "the drift that the layer causes at the bits it got, squared [mm\N{SUPERSCRIPT TWO}]",
    ),
}


def bit_map_section(result: Json, policies: Policies) -> str:
    """Bits of every linear layer, by role, in the order in which they run."""
    shades = (("low", f"{_LOW_BITS} bits or fewer"), ("middle", f"up to {_MIDDLE_BITS}"), ("high", "more"))
    keys = "".join(f'<li><span class="cell {shade}">0</span> {words}</li>' for shade, words in shades)
    parts = [f'<p>One cell per linear layer, in the order in which they run.</p><ul class="legend cells">{keys}</ul>']
    for policy in result["policies"]:
        layers = policy["layers"]
        bits = f"{mean_bits(layers):.2f} bits per weight without scales"
        title = f"<h3>{policies.label(policy['name'])} <small>{bits}</small></h3>"
        widths = {layer["num_bits"] for layer in layers}
        if len(widths) == 1 and min(widths) >= _KEPT_BITS:
            parts.append(f"{title}<p>All {len(layers)} layers in floating point, {min(widths)} bits.</p>")
            continue
        parts.append(title)
        for role, group in groupby(layers, key=lambda layer: str(layer["role"])):
            members = list(group)
            cells = "".join(_cell(layer) for layer in members)
            parts.append(
                f'<h4>{escape(_role(role))} <small>{_counts(members)}</small></h4><div class="map">{cells}</div>'
            )
    return section("bits", "Bits of each linear layer", "".join(parts))


def sensitivity_section(result: Json, policies: Policies) -> str:
    """Scores of the layers that were scored, and the highest ones by name."""
    parts = []
    for policy in result["policies"]:
        if all(layer["num_bits"] >= _KEPT_BITS for layer in policy["layers"]):
            continue
        plan = policy.get("plan")
        title = f"<h3>{policies.label(policy['name'])}</h3>"
        if plan is None:
            parts.append(
                title + absent("The result holds no plan: evaluate the folder with this version to see scores.")
            )
        elif plan["sensitivity"] is None:
            parts.append(title + absent("No layer was scored: its method gives bits by role alone."))
        else:
            parts.append(title + _scores(policy, plan, policies.labels[policy["name"]]))
    if not parts:
        parts = [absent("No policy is quantized, so no layer was scored.")]
    return section("sensitivity", "Sensitivity of layers", "".join(parts))


def mean_bits(layers: Sequence[Json]) -> float:
    """Mean bits per weight, scales not included."""
    total = sum(layer["parameters"] for layer in layers)
    return float(sum(layer["parameters"] * layer["num_bits"] for layer in layers) / max(1, total))


def _scores(policy: Json, plan: Json, label: str) -> str:
    described = {layer["name"]: layer for layer in policy["layers"]}
    scored = [(described[one["name"]], one) for one in plan["layers"] if one["score"] is not None and one["score"] > 0]
    axis, meaning = _SCORES.get(plan["sensitivity"], ("", f"score by {plan['sensitivity']}"))
    if not scored:
        return absent("Every score is 0.")
    points = [
        Point(
            value=one["score"],
            solid=layer["num_bits"] < _KEPT_BITS,
            group=_role(layer["role"]),
            title=f"{one['name']}: {one['score']:.3g}, {layer['num_bits']} bits ({one['reason']})",
        )
        for layer, one in scored
    ]
    highest = sorted(scored, key=lambda pair: -pair[1]["score"])[:_MOST_SENSITIVE]
    top = f"The highest score is {highest[0][1]['score']:.3g}, of {highest[0][1]['name']}."
    plot = scatter_plot(points, unit=axis, title=f"Sensitivity of the layers of {label}", description=top)
    rows = (
        (
            f"<code>{escape(one['name'])}</code>",
            escape(_role(layer["role"])),
            f"{one['score']:.3g}",
            str(layer["num_bits"]),
            escape(str(one["reason"])),
        )
        for layer, one in highest
    )
    listed = table(f"The {len(highest)} most sensitive layers", ("layer", "role", "score", "bits", "reason"), rows)
    words = note(
        f"Score: {meaning}, for {count_of(len(scored), 'layer')} in the order in which they run. Filled: quantized; "
        f"ring: kept at {_KEPT_BITS} bits."
    )
    return f"<figure>{plot}</figure>{words}<details><summary>Most sensitive layers</summary>{listed}</details>"


def _cell(layer: Json) -> str:
    """One layer of the bit map; its name shows when pointed at."""
    bits = layer["num_bits"]
    title = f"{escape(layer['name'])}: {bits} bits, {layer['parameters']} weights"
    return f'<span class="cell {_shade(bits)}" title="{title}">{bits}</span>'


def _counts(layers: Sequence[Json]) -> str:
    counts = sorted(Counter(layer["num_bits"] for layer in layers).items())
    return ", ".join(f"{count} at {bits} bits" for bits, count in counts)


def _role(role: str) -> str:
    return role.replace("_", " ")


def _shade(num_bits: int) -> str:
    return "low" if num_bits <= _LOW_BITS else "middle" if num_bits <= _MIDDLE_BITS else "high"
