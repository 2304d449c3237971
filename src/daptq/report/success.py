"""Success per task with intervals, by both rules, and the paired differences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from markupsafe import Markup

from daptq.evaluation.result import EvaluationResult
from daptq.metrics.pairs import Paired
from daptq.metrics.success import Rate
from daptq.report.elements import Group, Line, Section, Table
from daptq.report.labels import PolicyLabels
from daptq.report.tracks import interval_track, scale
from daptq.report.verdict import MARGIN
from daptq.report.wording import points, points_ends, points_interval, rate_text, task_name
from daptq.statistics.estimate import Estimate


@dataclass(frozen=True, kw_only=True)
class SuccessView:
    """Rates of success, over all tasks and per task.

    Attributes:
        driven: Policies that ran whole episodes.
        groups: Rates with their intervals, over all tasks first.
        scale: Labels of the intervals' axis.
        rules: Rates by both rules, and how often another task was done.
    """

    driven: tuple[str, ...]
    groups: tuple[Group, ...]
    scale: Markup
    rules: Table


@dataclass(frozen=True, kw_only=True)
class DifferenceView:
    """Paired differences of success.

    Attributes:
        against: Label of the baseline.
        margin: The loss at the dashed line, in percentage points.
        lines: Differences with their intervals.
        scale: Labels of the intervals' axis.
        pairs: Counts of pairs, McNemar's p, and other intervals.
    """

    against: str
    margin: float
    lines: tuple[Line, ...]
    scale: Markup
    pairs: Table


def success_section(result: EvaluationResult, labels: PolicyLabels) -> Section:
    """Success of every policy, over all tasks and per task."""
    driven = {policy.name: policy.success for policy in result.policies if policy.success is not None}
    section = Section(anchor="success", link="Success", title="Success", template="success.html")
    if not driven:
        return replace(section, absent="No whole episodes were run, so there are no rates of success.")
    by_task = {task: {name: rates.per_task[task] for name, rates in driven.items()} for task in result.tasks}
    groups = [_group("All tasks", driven, labels)]
    groups += [_group(task_name(task), rates, labels) for task, rates in by_task.items()]
    rules = Table(
        caption="Success by both rules, and other tasks that were fulfilled",
        header=("policy", "at any step", "at the last step", "did another task"),
        rows=[
            (labels.marked(name), *map(rate_text, (rates, rates.at_last_step, rates.other_task)))
            for name, rates in driven.items()
        ],
    )
    view = SuccessView(
        driven=tuple(driven),
        groups=tuple(groups),
        scale=scale("0 %", "50 %", "100 %"),
        rules=rules,
    )
    return replace(section, view=view)


def difference_section(result: EvaluationResult, labels: PolicyLabels) -> Section:
    """Paired differences of success."""
    comparisons = [(one, one.paired) for one in result.comparisons if one.paired is not None]
    section = Section(
        anchor="difference", link="Difference", title="Paired difference of success", template="difference.html"
    )
    if not comparisons:
        return replace(section, absent="No pair of whole episodes was run, so there is no difference.")
    reach = max(MARGIN, *(abs(end) for _, paired in comparisons for end in (paired.low, paired.high)))
    against = labels.label(comparisons[0][0].against)
    pairs = Table(
        caption=f"Episodes in pairs, against {against}",
        header=(
            "policy",
            "both succeed",
            "lost",
            "won",
            "neither",
            "McNemar p",
            "at last step [points]",
            "clustered by task [points]",
        ),
        rows=[_pairs(one.policy, paired, labels) for one, paired in comparisons],
    )
    view = DifferenceView(
        against=against,
        margin=MARGIN,
        lines=tuple(_difference(one.policy, paired, reach, labels) for one, paired in comparisons),
        scale=scale(points(-reach), "0", points(reach)),
        pairs=pairs,
    )
    return replace(section, view=view)


def _group(title: str, rates: Mapping[str, Rate], labels: PolicyLabels) -> Group:
    """The rates of all policies."""
    lines = tuple(_rate(name, rate, labels) for name, rate in rates.items())
    count = next(iter(rates.values())).n
    return Group(title=title, aside=f"n = {count}", lines=lines)


def _rate(name: str, rate: Rate, labels: PolicyLabels) -> Line:
    shown = Estimate(value=rate.success_rate, low=rate.low, high=rate.high)
    track = interval_track(shown, series=labels.marks[name], low=0.0, high=1.0)
    return Line(name=labels.label(name), track=track, number=rate_text(rate))


def _difference(name: str, paired: Paired, reach: float, labels: PolicyLabels) -> Line:
    shown = Estimate(value=paired.difference, low=paired.low, high=paired.high)
    track = interval_track(shown, series=labels.marks[name], low=-reach, high=reach, lines=(0.0, -MARGIN))
    number = points_interval(paired.difference, paired.low, paired.high)
    return Line(name=labels.label(name), track=track, number=number)


def _pairs(name: str, paired: Paired, labels: PolicyLabels) -> tuple[str, ...]:
    last, clustered = paired.at_last_step, paired.clustered_by_task
    return (
        labels.marked(name),
        *map(str, (paired.both, paired.only_baseline, paired.only_candidate, paired.neither)),
        f"{paired.mcnemar_p:.3g}",
        points_interval(last.difference, last.low, last.high),
        "not available" if clustered is None else points_ends(clustered.low, clustered.high),
    )
