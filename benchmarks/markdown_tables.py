"""Tables of an evaluation in Markdown, for the pages that benchmarks write."""

from __future__ import annotations

from collections.abc import Sequence

from daptq.evaluation.result import EvaluationResult
from daptq.metrics.success import Rates
from daptq.report.table import table_rows, variant_rows
from daptq.report.wording import rate_text


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table without a trailing newline; the first column is aligned at the left, others at the right."""
    lines = [header, ("---", *("---:" for _ in header[1:])), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def result_markdown(result: EvaluationResult) -> str:
    """A row per policy."""
    return markdown(*table_rows(result))


def variant_markdown(result: EvaluationResult) -> str:
    """A row per condition, for an evaluation on variants."""
    return markdown(*variant_rows(result))


def task_markdown(result: EvaluationResult) -> str:
    """A row per task: success of each policy by both rules. Every policy must have run whole episodes."""
    successes = [policy.success for policy in result.policies if policy.success is not None]
    header = ("task", "n", *(policy.name for policy in result.policies))
    rows = []
    for task in result.tasks:
        rates = [success.per_task[task] for success in successes]
        rows.append((task, str(rates[0].n), *map(_by_both_rules, rates)))
    return markdown(header, rows)


def _by_both_rules(rates: Rates) -> str:
    return f"{rate_text(rates)}, at last step {100 * rates.at_last_step.success_rate:.1f} %"
