"""What a policy costs: weights on disk and in memory, peak memory, and the time of a control step."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from daptq.report.figures import bar
from daptq.report.markup import (
    NOTHING,
    Json,
    Policies,
    absent,
    count_of,
    estimate,
    note,
    row,
    section,
    table,
)
from daptq.report.table import mebibytes


def cost_section(result: Json, policies: Policies, benchmark: Json | None) -> str:
    """Bars of sizes and times; what was not measured is said not to be."""
    parts = []
    for title, name in (("Weights on disk [MiB]", "bytes_on_disk"), ("Weights in memory [MiB]", "bytes_in_memory")):
        counts = {policy["name"]: policy["weights"][name] for policy in result["policies"]}
        parts.append(_sizes(title, counts, policies))
        unknown = [policies.labels[name] for name, count in counts.items() if count is None]
        if unknown:
            parts.append(absent(f"Not on disk: {', '.join(unknown)}."))
    if benchmark is not None:
        parts.append(_benchmark(benchmark, policies))
    if "latency" in result:
        parts.append(_latency(result["latency"], policies))
    if benchmark is None and "latency" not in result:
        parts.append(absent("Latency was not measured: pass the JSON of daptq benchmark with --benchmark."))
    return section("cost", "Memory and latency", "".join(parts))


def _benchmark(benchmark: Json, policies: Policies) -> str:
    entries = {entry["name"]: entry for entry in benchmark["policies"]}
    fastest = benchmark["float_path"]
    times = {name: entry["control_step_ms"]["p50"] for name, entry in entries.items()}
    times[fastest["name"]] = fastest["p50"]
    texts = {name: f"{milliseconds:.1f}" for name, milliseconds in times.items()}
    ratios = benchmark["ratio_to_float_path"]
    rows = [
        (
            _marked(name, policies),
            *(f"{entry['control_step_ms'][quantile]:.1f}" for quantile in ("p50", "p95", "p99")),
            escape(estimate(ratios[name])),
            escape(estimate(benchmark["ratio_to_eager"][name])),
        )
        for name, entry in entries.items()
    ]
    stages = [
        (_marked(name, policies), *(f"{milliseconds:.1f}" for milliseconds in entry["stages_ms"].values()))
        for name, entry in entries.items()
    ]
    names = [stage.replace("_", " ") for stage in next(iter(entries.values()))["stages_ms"]]
    header = ("policy", "median", "95 %", "99 %", f"of {fastest['name']}", "of eager float32")
    about = benchmark["provenance"]
    return (
        _sizes(
            "Peak memory of a control step [MiB]", {name: one["peak_bytes"] for name, one in entries.items()}, policies
        )
        + _bars("Time of a control step [ms], median", times, texts, policies)
        + table("Control step [ms], and ratios to floating point with 95 % intervals", header, rows)
        + table("Stages of a control step [ms], medians", ("policy", *names), stages)
        + note(
            f"daptq benchmark: {count_of(about['repeats'], 'repetition')} in turns, on "
            f"{count_of(about['threads'], 'thread')}, {_device(benchmark)}. The fastest way to run the "
            f"baseline in floating point is {fastest['name']}, of "
            f"{count_of(len(benchmark['float_paths']), 'candidate')}; a ratio below 1 is faster than it."
        )
    )


def _device(benchmark: Json) -> str:
    """The device and, where the JSON has it, which one."""
    name = benchmark.get("device_name")
    return escape(benchmark["device"] if name is None else f"{benchmark['device']} ({name})")


def _latency(latency: Json, policies: Policies) -> str:
    entries = {entry["name"]: entry for entry in latency["policies"]}
    texts = {name: _latency_text(entry) for name, entry in entries.items()}
    rows = [
        (
            _marked(name, policies),
            *(f"{entry[quantile]:.1f}" for quantile in ("p5_ms", "median_ms", "p95_ms")),
            escape(estimate(entry["ratio"])) if "ratio" in entry else NOTHING,
        )
        for name, entry in entries.items()
    ]
    values = {name: float(entry["median_ms"]) for name, entry in entries.items()}
    return (
        _bars("Latency of one prediction [ms]: median (times the baseline)", values, texts, policies)
        + table("Latency of one prediction [ms]", ("policy", "5 %", "median", "95 %", "times the baseline"), rows)
        + note(f"{latency['repeats']} rounds on {count_of(latency['threads'], 'CPU thread')}, in turns.")
    )


def _latency_text(entry: Json) -> str:
    ratio = f" ({entry['ratio']['value']:.2f})" if "ratio" in entry else ""
    return f"{entry['median_ms']:.1f}{ratio}"


def _sizes(title: str, counts: Mapping[str, int | None], policies: Policies) -> str:
    known = {name: count for name, count in counts.items() if count is not None}
    texts = {name: mebibytes(count) for name, count in known.items()}
    return _bars(title, {name: float(count) for name, count in known.items()}, texts, policies)


def _bars(title: str, values: Mapping[str, float], texts: Mapping[str, str], policies: Policies) -> str:
    if not values:
        return ""
    largest = max(values.values())
    rows = [
        row(_marked(name, policies), bar(value, largest, series=policies.marks.get(name)), texts[name])
        for name, value in values.items()
    ]
    return f'<div class="group"><h3>{escape(title)}</h3>{"".join(rows)}</div>'


def _marked(name: str, policies: Policies) -> str:
    """A name with the policy's mark, or alone where it is none of the evaluation's."""
    return policies.marked(name) if name in policies.marks else escape(name)
