"""The metrics of motion of every candidate, and what their intervals show."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from daptq.evaluation.comparison import Comparison, Motion
from daptq.evaluation.result import EvaluationResult
from daptq.metrics.motion import METRICS
from daptq.metrics.motion_change import MotionChange
from daptq.metrics.motion_metric import MotionMetric
from daptq.report.elements import Section, Table, small
from daptq.report.labels import PolicyLabels
from daptq.report.wording import MINUS, NOTHING

_TITLE = "Motion"


@dataclass(frozen=True, kw_only=True)
class MotionTables:
    """One table per comparison."""

    tables: tuple[Table, ...]


def motion_section(result: EvaluationResult, labels: PolicyLabels) -> Section:
    """One table per comparison that ran whole episodes."""
    tables = tuple(_table(one, one.motion, labels) for one in result.comparisons if one.motion is not None)
    return Section(
        anchor="motion",
        link=_TITLE,
        title=_TITLE,
        template="motion.html",
        view=MotionTables(tables=tables),
        absent="" if tables else "Motion was not compared: that takes a baseline and whole episodes.",
    )


def _table(comparison: Comparison, motion: Motion, labels: PolicyLabels) -> Table:
    against = labels.label(comparison.against)
    return Table(
        caption=f"{labels.label(comparison.policy)} against {against}: medians over episodes",
        header=("metric", "unit", against, "policy", "change [95 %]", "reads", "n"),
        rows=[_row(METRICS[name], entry) for name, entry in motion.items()],
        wide_first=True,
    )


def _row(metric: MotionMetric, entry: MotionChange) -> tuple[str, ...]:
    head = Markup("{}{}").format(metric.title, small(metric.definition))
    if entry.baseline is None or entry.candidate is None or entry.change is None:
        return head, metric.unit, NOTHING, NOTHING, NOTHING, "defined in no episode", "0"
    change, signed = entry.change, metric.change == "difference"
    ends = f"[{_number(change.low, signed=signed)}, {_number(change.high, signed=signed)}]"
    neutral = 0.0 if signed else 1.0
    reads = "higher" if change.low > neutral else "lower" if change.high < neutral else "no difference shown"
    return (
        head,
        metric.unit,
        _number(entry.baseline),
        _number(entry.candidate),
        f"{_number(change.value, signed=signed)} {ends}",
        reads,
        str(entry.n),
    )


def _number(value: float, *, signed: bool = False) -> str:
    """Three digits, no exponent for the sizes that motion has."""
    text = f"{value:+.3g}" if signed and value else f"{value:.3g}"
    return text.replace("-", MINUS)
