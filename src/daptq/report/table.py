"""A result as one table: a column per policy for the terminal, a row per policy for Markdown pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from daptq.metrics.deviation import HEADLINE_STEPS
from daptq.metrics.drift import headline_drift

MISSING = "-"
_MEBIBYTE = 2**20

HEADER = (
    "policy",
    "success [95 %]",
    "difference [points, 95 %]",
    "drift after {steps} steps, median [mm / deg]",
    "drift over episode, RMS [mm / deg]",
    "disk [MiB]",
    "memory [MiB]",
    "latency [ms]",
)


def table_rows(result: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The header and one row of texts per policy.

    Args:
        result: What `evaluate` returned, with what `measure_latency` returned under `latency` where it was measured.
    """
    comparisons = {comparison["policy"]: comparison for comparison in result["comparisons"]}
    latencies = {entry["name"]: entry for entry in result.get("latency", {}).get("policies", ())}
    rows: list[tuple[str, ...]] = []
    for policy in result["policies"]:
        weights = policy["weights"]
        latency = latencies.get(policy["name"])
        rows.append(
            (
                policy["name"],
                rate_text(policy),
                *_comparison_cells(comparisons.get(policy["name"])),
                mebibytes(weights["bytes_on_disk"]),
                mebibytes(weights["bytes_in_memory"]),
                MISSING if latency is None else _latency_cell(latency),
            )
        )
    return tuple(name.format(steps=HEADLINE_STEPS) for name in HEADER), rows


def result_table(result: Mapping[str, Any]) -> Table:
    """The table for the terminal: a terminal is narrow, so each policy is a column."""
    header, rows = table_rows(result)
    rates = f"n = {result['episodes']} paired episodes"
    table = Table(title=f"{result['environment']}: {rates}", caption="success at any step; Wilson and Tango intervals")
    table.add_column("")
    for row in rows:
        table.add_column(Text(row[0]), justify="right")
    for number, name in enumerate(header[1:], start=1):
        # As plain text: rich would read a unit in brackets as a style.
        table.add_row(Text(name), *(Text(row[number]) for row in rows))
    return table


def markdown_table(result: Mapping[str, Any]) -> str:
    """The table in Markdown, without a trailing newline."""
    return _markdown(*table_rows(result))


def variant_rows(result: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The header and one row of texts per condition: success of every policy and the gap of every candidate.

    Args:
        result: What `evaluate_variants` returned.
    """
    names = [policy["name"] for policy in result["policies"]]
    candidates = [comparison["policy"] for comparison in result["comparisons"]]
    header = ("condition", *names, *(f"gap of {name} [points, 95 %]" for name in candidates))
    rows = [("nominal", *map(rate_text, result["policies"]), *(MISSING for _ in candidates))]
    rows += [
        (entry["variant"], *map(rate_text, entry["policies"]), *map(gap_text, entry["robustness_gap"]))
        for entry in result["variants"]
    ]
    if len(result["variants"]) > 1 and candidates:
        rows.append(("all variants", *(_mean_rate(result, n) for n in names), *map(gap_text, result["robustness_gap"])))
    return header, rows


def variant_table(result: Mapping[str, Any]) -> Table:
    """What variants change, for the terminal."""
    header, rows = variant_rows(result)
    caption = "gap: difference to the baseline on the variant minus that in the nominal scene"
    table = Table(title=f"{result['environment']}: variants, n = {result['episodes']} each", caption=caption)
    for name in header:
        table.add_column(Text(name), justify="left" if name == header[0] else "right")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def variant_markdown(result: Mapping[str, Any]) -> str:
    """What variants change, in Markdown, without a trailing newline."""
    return _markdown(*variant_rows(result))


def gap_text(gap: Mapping[str, Any]) -> str:
    """A robustness gap with its interval, in percentage points."""
    return f"{gap['value']:+.1f} [{gap['low']:+.1f}, {gap['high']:+.1f}]"


def _mean_rate(result: Mapping[str, Any], name: str) -> str:
    """The mean over variants of a policy's success rate, in percent; the variants share episodes: no plain interval."""
    rates = [p["success_rate"] for entry in result["variants"] for p in entry["policies"] if p["name"] == name]
    return f"{100 * sum(rates) / len(rates):.1f} %"


def task_table(result: Mapping[str, Any]) -> str:
    """Success of each policy on each task by both rules, in Markdown, without a trailing newline."""
    header = ("task", "n", *(policy["name"] for policy in result["policies"]))
    rows = []
    for task in result["tasks"]:
        rates = [policy["per_task"][task] for policy in result["policies"]]
        cells = [
            f"{rate_text(rate)}, at last step {100 * rate['at_last_step']['success_rate']:.1f} %" for rate in rates
        ]
        rows.append((task, str(rates[0]["n"]), *cells))
    return _markdown(header, rows)


def monitor_rows(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name of each condition in which the policy was watched, and what the monitor said there; often empty."""
    conditions = [("nominal", result), *((entry["variant"], entry) for entry in result.get("variants", ()))]
    return [(name, _monitor_text(entry["monitor"])) for name, entry in conditions if "monitor" in entry]


def _monitor_text(monitor: Mapping[str, Any]) -> str:
    episodes, at = monitor["episodes"], monitor["flagged_at"]
    if at is None:
        most = max(one["statistic"] for one in episodes)
        return f"no shift in {len(episodes)} episodes (evidence up to {most:.3g}, flag at {monitor['threshold']:g})"
    return f"shift flagged after {at + 1} of {len(episodes)} episodes"


def rate_text(rate: Mapping[str, Any]) -> str:
    """A success rate with its interval, in percent."""
    return f"{100 * rate['success_rate']:.1f} % [{100 * rate['low']:.1f}, {100 * rate['high']:.1f}]"


def mebibytes(count: int | None) -> str:
    """A number of bytes in MiB, two decimals."""
    return MISSING if count is None else f"{count / _MEBIBYTE:.2f}"


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ("---", *("---:" for _ in header[1:])), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _latency_cell(latency: Mapping[str, Any]) -> str:
    ratio = f" ({latency['ratio']['value']:.2f}x)" if "ratio" in latency else ""
    return f"{latency['median_ms']:.1f}{ratio}"


def _comparison_cells(comparison: Mapping[str, Any] | None) -> tuple[str, str, str]:
    if comparison is None:
        return MISSING, MISSING, MISSING
    paired, drift = comparison["paired"], comparison["drift"]
    difference = f"{paired['difference']:+.1f} [{paired['low']:+.1f}, {paired['high']:+.1f}]"
    entry = headline_drift(drift["identical_states"])
    branch = MISSING
    if entry is not None:
        branch = f"{entry['position_mm']['median']['value']:.2f} / {entry['rotation_deg']['median']['value']:.2f}"
    whole = drift["whole_episode"]
    return (
        difference,
        branch,
        f"{whole['position_mm']['rms']['value']:.1f} / {whole['rotation_deg']['rms']['value']:.1f}",
    )
