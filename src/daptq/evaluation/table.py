"""A result as one table: a row per policy, for the terminal and for Markdown pages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

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
    furthest = max(
        (entry["steps"] for one in comparisons.values() for entry in one["drift"]["identical_states"]["after_steps"]),
        default=0,
    )
    rows: list[tuple[str, ...]] = []
    for policy in result["policies"]:
        weights = policy["weights"]
        latency = latencies.get(policy["name"])
        rows.append(
            (
                policy["name"],
                f"{100 * policy['success_rate']:.1f} % [{100 * policy['low']:.1f}, {100 * policy['high']:.1f}]",
                *_comparison_cells(comparisons.get(policy["name"]), furthest),
                mebibytes(weights["bytes_on_disk"]),
                mebibytes(weights["bytes_in_memory"]),
                MISSING if latency is None else f"{latency['median_ms']:.1f}",
            )
        )
    return tuple(name.format(steps=furthest) for name in HEADER), rows


def result_table(result: Mapping[str, Any]) -> Table:
    """The table for the terminal."""
    header, rows = table_rows(result)
    rates = f"n = {result['episodes']} paired episodes"
    table = Table(title=f"{result['environment']}: {rates}", caption="success at any step; Wilson and Tango intervals")
    for column, name in enumerate(header):
        table.add_column(name, justify="left" if column == 0 else "right")
    for row in rows:
        table.add_row(*row)
    return table


def markdown_table(result: Mapping[str, Any]) -> str:
    """The table in Markdown, without a trailing newline."""
    header, rows = table_rows(result)
    lines = [header, ("---", *("---:" for _ in header[1:])), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def mebibytes(count: int | None) -> str:
    """A number of bytes in MiB, two decimals."""
    return MISSING if count is None else f"{count / _MEBIBYTE:.2f}"


def _comparison_cells(comparison: Mapping[str, Any] | None, furthest: int) -> tuple[str, str, str]:
    if comparison is None:
        return MISSING, MISSING, MISSING
    paired, drift = comparison["paired"], comparison["drift"]
    difference = f"{paired['difference']:+.1f} [{paired['low']:+.1f}, {paired['high']:+.1f}]"
    branches = {entry["steps"]: entry for entry in drift["identical_states"]["after_steps"]}
    branch = MISSING
    if furthest in branches:
        entry = branches[furthest]
        branch = f"{entry['position_mm']['median']['value']:.2f} / {entry['rotation_deg']['median']['value']:.2f}"
    whole = drift["whole_episode"]
    return (
        difference,
        branch,
        f"{whole['position_mm']['rms']['value']:.1f} / {whole['rotation_deg']['rms']['value']:.1f}",
    )
