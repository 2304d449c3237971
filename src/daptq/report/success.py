"""Success per task with intervals, by both rules, and the paired differences."""

from __future__ import annotations

from dataclasses import dataclass, replace

from markupsafe import Markup

from daptq.report.elements import Group, Line, Section, Table
from daptq.report.labels import PolicyLabels
from daptq.report.table import rate_text
from daptq.report.tracks import Estimate, interval_track, scale
from daptq.report.verdict import MARGIN
from daptq.report.wording import Json, points, points_ends, points_interval, task_name


@dataclass(frozen=True, kw_only=True)
class Success:
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
class Difference:
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


def success_section(result: Json, labels: PolicyLabels) -> Section:
    """Success of every policy, over all tasks and per task."""
    driven = [policy for policy in result["policies"] if "success_rate" in policy]
    section = Section(anchor="success", link="Success", title="Success", template="success.html")
    if not driven:
        return replace(section, absent="No whole episodes were run, so there are no rates of success.")
    groups = []
    for task in (None, *result["tasks"]):
        rates = {policy["name"]: policy if task is None else policy["per_task"][task] for policy in driven}
        lines = tuple(_rate(name, rate, labels) for name, rate in rates.items())
        title = "All tasks" if task is None else task_name(task)
        groups.append(Group(title=title, aside=f"n = {rates[driven[0]['name']]['n']}", lines=lines))
    rules = Table(
        caption="Success by both rules, and other tasks that were fulfilled",
        header=("policy", "at any step", "at the last step", "did another task"),
        rows=[
            (
                labels.marked(policy["name"]),
                rate_text(policy),
                rate_text(policy["at_last_step"]),
                rate_text(policy["other_task"]),
            )
            for policy in driven
        ],
    )
    view = Success(
        driven=tuple(policy["name"] for policy in driven),
        groups=tuple(groups),
        scale=scale("0 %", "50 %", "100 %"),
        rules=rules,
    )
    return replace(section, view=view)


def difference_section(result: Json, labels: PolicyLabels) -> Section:
    """Paired differences of success."""
    comparisons = [one for one in result["comparisons"] if one["paired"] is not None]
    section = Section(
        anchor="difference", link="Difference", title="Paired difference of success", template="difference.html"
    )
    if not comparisons:
        return replace(section, absent="No pair of whole episodes was run, so there is no difference.")
    reach = max(MARGIN, *(abs(one["paired"][end]) for one in comparisons for end in ("low", "high")))
    against = labels.label(comparisons[0]["against"])
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
        rows=[_pairs(one, labels) for one in comparisons],
    )
    view = Difference(
        against=against,
        margin=MARGIN,
        lines=tuple(_difference(one, reach, labels) for one in comparisons),
        scale=scale(points(-reach), "0", points(reach)),
        pairs=pairs,
    )
    return replace(section, view=view)


def _rate(name: str, rate: Json, labels: PolicyLabels) -> Line:
    shown = Estimate(value=rate["success_rate"], low=rate["low"], high=rate["high"])
    track = interval_track(shown, series=labels.marks[name], low=0.0, high=1.0)
    return Line(name=labels.label(name), track=track, number=rate_text(rate))


def _difference(comparison: Json, reach: float, labels: PolicyLabels) -> Line:
    name, paired = comparison["policy"], comparison["paired"]
    shown = Estimate(value=paired["difference"], low=paired["low"], high=paired["high"])
    track = interval_track(shown, series=labels.marks[name], low=-reach, high=reach, lines=(0.0, -MARGIN))
    return Line(name=labels.label(name), track=track, number=points_interval(paired))


def _pairs(comparison: Json, labels: PolicyLabels) -> tuple[str, ...]:
    paired = comparison["paired"]
    clustered = paired["clustered_by_task"]
    return (
        labels.marked(comparison["policy"]),
        *(str(paired[name]) for name in ("both", "only_baseline", "only_candidate", "neither")),
        f"{paired['mcnemar_p']:.3g}",
        points_interval(paired["at_last_step"]),
        "not available" if clustered is None else points_ends(clustered),
    )
