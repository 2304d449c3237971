"""A result as tables for the terminal: a column per policy, and for variants a row per condition."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from daptq.evaluation.comparison import Comparison
from daptq.evaluation.result import EvaluationResult, PolicyResult
from daptq.evaluation.variant_result import RobustnessGap, VariantResult
from daptq.metrics.deviation import HEADLINE_STEPS
from daptq.report.wording import mebibytes, monitor_flag, rate_text

MISSING = "-"

HEADER = (
    "policy",
    "success [95 %]",
    "difference [points, 95 %]",
    "drift after {steps} steps, median [mm / deg]",
    "drift over episode, RMS [mm / deg]",
    "disk [MiB]",
    "memory [MiB]",
)


def table_rows(result: EvaluationResult) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The header and one row of texts per policy; what was not measured is `MISSING`."""
    comparisons = {comparison.policy: comparison for comparison in result.comparisons}
    rows: list[tuple[str, ...]] = []
    for policy in result.policies:
        on_disk = policy.weights.bytes_on_disk
        rows.append(
            (
                policy.name,
                _success(policy),
                *_comparison_cells(comparisons.get(policy.name)),
                MISSING if on_disk is None else mebibytes(on_disk),
                mebibytes(policy.weights.bytes_in_memory),
            )
        )
    return tuple(name.format(steps=HEADLINE_STEPS) for name in HEADER), rows


def result_table(result: EvaluationResult) -> Table:
    """The table for the terminal: a terminal is narrow, so each policy is a column."""
    header, rows = table_rows(result)
    rates = f"n = {result.episodes} paired episodes"
    table = Table(title=f"{result.environment}: {rates}", caption="success at any step; Wilson and Tango intervals")
    table.add_column("")
    for row in rows:
        table.add_column(Text(row[0]), justify="right")
    for number, name in enumerate(header[1:], start=1):
        # As plain text: rich would read a unit in brackets as a style.
        table.add_row(Text(name), *(Text(row[number]) for row in rows))
    return table


def variant_rows(result: EvaluationResult) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The header and one row of texts per condition: success of every policy and the gap of every candidate.

    Args:
        result: What `evaluate_variants` returned.
    """
    names = [policy.name for policy in result.policies]
    candidates = [comparison.policy for comparison in result.comparisons]
    variants = result.variants or ()
    header = ("condition", *names, *(f"gap of {name} [points, 95 %]" for name in candidates))
    rows = [("nominal", *map(_success, result.policies), *(MISSING for _ in candidates))]
    rows += [
        (entry.variant, *map(rate_text, entry.policies), *map(gap_text, entry.robustness_gap)) for entry in variants
    ]
    if len(variants) > 1 and candidates:
        means = (_mean_rate(variants, name) for name in names)
        rows.append(("all variants", *means, *map(gap_text, result.robustness_gap or ())))
    return header, rows


def variant_table(result: EvaluationResult) -> Table:
    """What variants change, for the terminal."""
    header, rows = variant_rows(result)
    caption = "gap: difference to the baseline on the variant minus that in the nominal scene"
    table = Table(title=f"{result.environment}: variants, n = {result.episodes} each", caption=caption)
    for name in header:
        table.add_column(Text(name), justify="left" if name == header[0] else "right")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def gap_text(gap: RobustnessGap) -> str:
    """A robustness gap with its interval, in percentage points."""
    return f"{gap.value:+.1f} [{gap.low:+.1f}, {gap.high:+.1f}]"


def monitor_rows(result: EvaluationResult) -> list[tuple[str, str]]:
    """Name of each condition in which the policy was watched, and what the monitor said there; often empty."""
    conditions = [("nominal", result.monitor), *((entry.variant, entry.monitor) for entry in result.variants or ())]
    return [(name, monitor_flag(monitor)) for name, monitor in conditions if monitor is not None]


def _success(policy: PolicyResult) -> str:
    return MISSING if policy.success is None else rate_text(policy.success)


def _mean_rate(variants: Sequence[VariantResult], name: str) -> str:
    """The mean over variants of a policy's success rate, in percent; the variants share episodes: no plain interval."""
    rates = [policy.success_rate for entry in variants for policy in entry.policies if policy.name == name]
    return f"{100 * sum(rates) / len(rates):.1f} %"


def _comparison_cells(comparison: Comparison | None) -> tuple[str, str, str]:
    """The difference of success, and drift from common states and over whole episodes."""
    if comparison is None:
        return MISSING, MISSING, MISSING
    difference = branch = episode = MISSING
    paired, headline = comparison.paired, comparison.drift.identical_states.headline
    if paired is not None:
        difference = f"{paired.difference:+.1f} [{paired.low:+.1f}, {paired.high:+.1f}]"
    if headline is not None:
        branch = f"{headline.position_mm.median.value:.2f} / {headline.rotation_deg.median.value:.2f}"
    whole = comparison.drift.whole_episode
    if whole is not None:
        episode = f"{whole.position_mm.rms.value:.1f} / {whole.rotation_deg.rms.value:.1f}"
    return difference, branch, episode
