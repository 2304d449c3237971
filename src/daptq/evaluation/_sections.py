"""The sections of the report, each a piece of HTML made from the result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import groupby
from typing import Any

from daptq.evaluation._svg import Estimate, bar, growth_plot, interval_track, key, scale
from daptq.evaluation.drift import headline_drift
from daptq.evaluation.table import mebibytes, rate_text

Json = Mapping[str, Any]

_MINUS = "\N{MINUS SIGN}"
_LOW_BITS = 4
_MIDDLE_BITS = 8
_SMALL = 0.01


def all_sections(result: Json, title: str) -> str:
    """The body of the page.

    Args:
        result: What `evaluate` returned.
        title: Heading of the page.
    """
    series = {policy["name"]: index for index, policy in enumerate(result["policies"])}
    sections = (
        _head(title, result),
        _verdicts(result),
        _success(result, series),
        _pairs(result, series),
        _drift(result, series),
        _cost(result, series),
        _bit_map(result),
        _provenance(result),
    )
    return "\n".join(sections)


def verdict(comparison: Json) -> tuple[str, str]:
    """A headline and a sentence on one comparison, read off the interval of the paired difference.

    Args:
        comparison: One entry of the result's `comparisons`.
    """
    paired = comparison["paired"]
    low, high = paired["low"], paired["high"]
    if high < 0:
        headline = "Success is lower"
    elif low > 0:
        headline = "Success is higher"
    else:
        headline = "No difference in success was found"
    detail = (
        f"{_points(paired['difference'])} points against {comparison['against']} "
        f"(95 % interval {_points(low)} to {_points(high)}, {paired['n']} pairs; {paired['only_baseline']} episodes "
        f"lost, {paired['only_candidate']} won, exact McNemar p = {paired['mcnemar_p']:.3g})."
    )
    if low <= 0 <= high:
        detail += f" These episodes do not rule out a loss of up to {abs(low):.1f} points."
    return headline, detail


def _head(title: str, result: Json) -> str:
    count = len(result["tasks"])
    tasks = f"{count} task" + ("s" if count != 1 else "")
    return (
        f"<h1>{escape(title)}</h1>"
        f'<p class="soft">{result["episodes"]} paired episodes over {tasks}, {result["horizon"]} control steps each, '
        f"seed {result['seed']}. Every policy starts from the same states and sees the same diffusion noise. Success "
        f"counts {escape(result['success_rule'])} unless said otherwise; intervals are 95 %.</p>"
    )


def _verdicts(result: Json) -> str:
    cards = []
    rates = {policy["name"]: policy for policy in result["policies"]}
    for comparison in result["comparisons"]:
        headline, detail = verdict(comparison)
        rate = rates[comparison["policy"]]
        own = f"Success {rate_text(rate)}; {comparison['against']}: {rate_text(rates[comparison['against']])}."
        cards.append(
            f'<div class="verdict"><strong>{escape(comparison["policy"])}: {headline.lower()}</strong>'
            f"<p>{escape(detail)}</p><p>{escape(own)}{escape(_drift_sentence(comparison))}</p></div>"
        )
    if not cards:
        cards = [
            f'<div class="verdict"><strong>{escape(name)}: success {rate_text(rate)}</strong>'
            "<p>No baseline was given, so nothing is said about a loss.</p></div>"
            for name, rate in rates.items()
        ]
    return "".join(cards)


def _drift_sentence(comparison: Json) -> str:
    """How far the end-effector is off some steps after a common state, or nothing when no state was saved."""
    last = headline_drift(_branches(comparison))
    if last is None:
        return ""
    position, rotation = last["position_mm"]["median"], last["rotation_deg"]["median"]
    return (
        f" After {last['steps']} steps from an identical state the end-effector is off by {_estimate(position)} mm and "
        f"{_estimate(rotation)} deg (median)."
    )


def _success(result: Json, series: Mapping[str, int]) -> str:
    groups = []
    for task in (None, *result["tasks"]):
        rows = []
        for policy in result["policies"]:
            rate = policy if task is None else policy["per_task"][task]
            estimate = Estimate(value=rate["success_rate"], low=rate["low"], high=rate["high"])
            track = interval_track(estimate, series=series[policy["name"]], low=0.0, high=1.0)
            rows.append(_row(policy["name"], track, rate_text(rate)))
        count = result["policies"][0]["n"] if task is None else result["policies"][0]["per_task"][task]["n"]
        heading = f"<h3>{escape(_task_name(task))}, n = {count}</h3>"
        groups.append(f'<div class="group">{heading}{"".join(rows)}</div>')
    header = ("policy", "at any step", "at the last step", "did another task")
    table = _table(
        header,
        (
            (
                escape(policy["name"]),
                rate_text(policy),
                rate_text(policy["at_last_step"]),
                rate_text(policy["other_task"]),
            )
            for policy in result["policies"]
        ),
    )
    return (
        f"<h2>Success</h2>{_legend(series)}{''.join(groups)}{_scale_row('0 %', '50 %', '100 %')}"
        f"<h3>By both rules</h3>{table}"
        '<p class="soft">"Did another task": the robot fulfilled an instruction of the scene that was not given.</p>'
    )


def _pairs(result: Json, series: Mapping[str, int]) -> str:
    comparisons = result["comparisons"]
    if not comparisons:
        return ""
    reach = max(max(abs(one["paired"]["low"]), abs(one["paired"]["high"])) for one in comparisons) or 1.0
    rows, cells, episodes = [], [], []
    for one in comparisons:
        paired = one["paired"]
        estimate = Estimate(value=paired["difference"], low=paired["low"], high=paired["high"])
        track = interval_track(estimate, series=series[one["policy"]], low=-reach, high=reach, zero=0.0)
        text = f"{_points(paired['difference'])} [{_points(paired['low'])}, {_points(paired['high'])}]"
        rows.append(_row(one["policy"], track, text))
        last = paired["at_last_step"]
        counts = [str(paired[name]) for name in ("both", "only_baseline", "only_candidate", "neither")]
        at_last = f"{_points(last['difference'])} [{_points(last['low'])}, {_points(last['high'])}]"
        cells.append((escape(one["policy"]), *counts, f"{paired['mcnemar_p']:.3g}", at_last))
        for word, name in (("lost", "only_baseline_episodes"), ("won", "only_candidate_episodes")):
            numbers = ", ".join(map(str, paired[name])) or "none"
            episodes.append(f'<p class="soft">{escape(one["policy"])}, episodes {word}: {numbers}</p>')
    rows.append(_scale_row(_points(-reach), "0", _points(reach)))
    baseline = escape(comparisons[0]["against"])
    header = ("policy", "both succeed", "only baseline", "only this", "neither", "McNemar p", "difference at last step")
    return (
        f"<h2>Paired difference against {baseline} [points]</h2><div class='group'>{''.join(rows)}</div>"
        f"{_table(header, cells)}{''.join(episodes)}"
    )


def _drift(result: Json, series: Mapping[str, int]) -> str:
    comparisons = result["comparisons"]
    if not comparisons:
        return ""
    charts = []
    first = _branches(comparisons[0])
    if first["n"]:
        labels = [f"{entry['steps']} step" + ("s" if entry["steps"] != 1 else "") for entry in first["after_steps"]]
        for name, unit, what in (("position_mm", "mm", "position"), ("rotation_deg", "deg", "rotation")):
            lines = [
                (series[one["policy"]], [Estimate(**entry[name]["median"]) for entry in _branches(one)["after_steps"]])
                for one in comparisons
            ]
            plot = growth_plot(lines, labels=labels, unit=unit, description=f"Median {what} drift after {labels}")
            charts.append(f"<div><h3>Median {what} drift</h3>{plot}</div>")
    note = (
        f"From {first['n']} states of {first['episodes']} full-precision episodes, every policy continues with the "
        "same noise. "
        if first["n"]
        else ""
    )
    cells = [(escape(one["policy"]), *_drift_cells(one)) for one in comparisons]
    steps = [f"after {entry['steps']}" for entry in first["after_steps"]]
    header = ("policy", *steps, "episode RMS", "median of episodes")
    return (
        f"<h2>Drift of the end-effector</h2><p>{note}Table cells: position [mm], rotation [deg].</p>"
        f"{_legend({name: index for name, index in series.items() if index})}"
        f'<div class="charts">{"".join(charts)}</div>{_table(header, cells)}'
    )


def _cost(result: Json, series: Mapping[str, int]) -> str:
    parts = ["<h2>Weights and latency</h2>"]
    for title, name in (("Weights on disk [MiB]", "bytes_on_disk"), ("Weights in memory [MiB]", "bytes_in_memory")):
        counts = {policy["name"]: policy["weights"][name] for policy in result["policies"]}
        known = {label: float(count) for label, count in counts.items() if count is not None}
        texts = {label: mebibytes(count) for label, count in counts.items() if count is not None}
        parts.append(_bars(title, known, texts, series))
    latency = result.get("latency")
    if latency is not None:
        values = {entry["name"]: float(entry["median_ms"]) for entry in latency["policies"]}
        texts = {entry["name"]: _latency_text(entry) for entry in latency["policies"]}
        parts.append(_bars("Latency of one prediction [ms]: median (times the baseline)", values, texts, series))
        header = ("policy", "5 %", "median", "95 %", "times the baseline [95 %]")
        parts.append(_table(header, (_latency_row(entry) for entry in latency["policies"])))
        parts.append(
            f'<p class="soft">{latency["repeats"]} rounds on {latency["threads"]} CPU thread(s), in turns.</p>'
        )
    return "".join(parts)


def _latency_text(entry: Json) -> str:
    ratio = f" ({entry['ratio']['value']:.2f})" if "ratio" in entry else ""
    return f"{entry['median_ms']:.1f}{ratio}"


def _latency_row(entry: Json) -> tuple[str, ...]:
    times = (f"{entry[name]:.1f}" for name in ("p5_ms", "median_ms", "p95_ms"))
    return escape(entry["name"]), *times, escape(_estimate(entry["ratio"])) if "ratio" in entry else "-"


def _bit_map(result: Json) -> str:
    parts = ["<h2>Bits of each linear layer</h2>"]
    for policy in result["policies"]:
        total = sum(layer["parameters"] for layer in policy["layers"])
        bits = sum(layer["parameters"] * layer["num_bits"] for layer in policy["layers"])
        parts.append(f"<h3>{escape(policy['name'])}: {bits / max(1, total):.2f} bits per weight without scales</h3>")
        for role, layers in groupby(policy["layers"], key=lambda layer: layer["role"]):
            cells = "".join(_cell(layer) for layer in layers)
            parts.append(f'<p class="soft">{escape(role.replace("_", " "))}</p><div class="cells">{cells}</div>')
    return "".join(parts)


def _cell(layer: Json) -> str:
    """One layer of the bit map; its name shows when pointed at."""
    bits, name = layer["num_bits"], escape(layer["name"])
    title = f"{name}: {bits} bits, {layer['parameters']} weights"
    return f'<span class="cell {_shade(bits)}" title="{title}">{bits}</span>'


def _provenance(result: Json) -> str:
    rows = []
    for name, value in result["provenance"].items():
        if value is None:
            continue
        if isinstance(value, Mapping):
            text = ", ".join(f"{key_} {inner}" for key_, inner in value.items() if inner is not None)
        else:
            text = str(value)
        rows.append((escape(name), escape(text)))
    rows += [(escape(f"weights of {one['name']}"), f"sha256 {one['weights']['sha256']}") for one in result["policies"]]
    body = "".join(f'<tr><td>{name}</td><td class="wrap">{text}</td></tr>' for name, text in rows)
    return f'<h2>Provenance</h2><div class="scroll"><table>{body}</table></div>'


def _row(name: str, track: str, text: str) -> str:
    return f'<div class="row"><span>{escape(name)}</span>{track}<span>{escape(text)}</span></div>'


def _scale_row(left: str, middle: str, right: str) -> str:
    """What the ends and the middle of the tracks above mean."""
    return f'<div class="row scale"><span></span>{scale(left, middle, right)}<span></span></div>'


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of ready HTML cells."""
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def _legend(series: Mapping[str, int]) -> str:
    items = "".join(f"<li>{key(index)} {escape(name)}</li>" for name, index in series.items())
    return f'<ul class="legend">{items}</ul>'


def _bars(title: str, values: Mapping[str, float], texts: Mapping[str, str], series: Mapping[str, int]) -> str:
    if not values:
        return ""
    largest = max(values.values())
    rows = [_row(name, bar(value, largest, series=series[name]), texts[name]) for name, value in values.items()]
    return f"<h3>{escape(title)}</h3>{''.join(rows)}"


def _branches(comparison: Json) -> Json:
    branches: Json = comparison["drift"]["identical_states"]
    return branches


def _drift_cells(comparison: Json) -> list[str]:
    whole = comparison["drift"]["whole_episode"]
    pairs = [
        (entry["position_mm"]["median"], entry["rotation_deg"]["median"])
        for entry in _branches(comparison)["after_steps"]
    ]
    pairs += [(whole["position_mm"][name], whole["rotation_deg"][name]) for name in ("rms", "median_of_episodes")]
    return [f"{escape(_estimate(position))}<br>{escape(_estimate(rotation))}" for position, rotation in pairs]


def _estimate(value: Json) -> str:
    return f"{_short(value['value'])} [{_short(value['low'])}, {_short(value['high'])}]"


def _short(value: float) -> str:
    """Three digits; what is small is said to be, so that 0 means exactly 0."""
    return f"{value:.3g}" if value == 0 or abs(value) >= _SMALL else f"<{_SMALL:g}"


def _points(value: float) -> str:
    """A signed number of percentage points; rounding leaves no minus zero."""
    rounded = round(value, 1) + 0.0
    sign = "+" if rounded > 0 else _MINUS if rounded < 0 else ""
    return f"{sign}{abs(rounded):.1f}"


def _task_name(task: str | None) -> str:
    return "All tasks" if task is None else task.replace("_", " ").capitalize()


def _shade(num_bits: int) -> str:
    return "low" if num_bits <= _LOW_BITS else "middle" if num_bits <= _MIDDLE_BITS else "high"
