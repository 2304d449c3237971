"""Success per task with intervals, by both rules, and the paired differences."""

from __future__ import annotations

from daptq.report.figures import Estimate, interval_track
from daptq.report.markup import (
    Json,
    Policies,
    absent,
    legend,
    note,
    points,
    points_interval,
    row,
    scale_row,
    section,
    table,
    task_name,
)
from daptq.report.table import rate_text
from daptq.report.verdict import MARGIN

_SCALE = ("0 %", "50 %", "100 %")


def success_section(result: Json, policies: Policies) -> str:
    """Success of every policy, over all tasks and per task."""
    driven = [policy for policy in result["policies"] if "success_rate" in policy]
    if not driven:
        return section("success", "Success", absent("No whole episodes were run, so there are no rates of success."))
    groups = []
    for task in (None, *result["tasks"]):
        rows = []
        for policy in driven:
            rate = policy if task is None else policy["per_task"][task]
            shown = Estimate(value=rate["success_rate"], low=rate["low"], high=rate["high"])
            track = interval_track(shown, series=policies.marks[policy["name"]], low=0.0, high=1.0)
            rows.append(row(policies.label(policy["name"]), track, rate_text(rate)))
        count = driven[0]["n"] if task is None else driven[0]["per_task"][task]["n"]
        name = "All tasks" if task is None else task_name(task)
        groups.append(f'<div class="group"><h3>{name} <small>n = {count}</small></h3>{"".join(rows)}</div>')
    rules = table(
        "Success by both rules, and other tasks that were fulfilled",
        ("policy", "at any step", "at the last step", "did another task"),
        (
            (
                policies.marked(policy["name"]),
                rate_text(policy),
                rate_text(policy["at_last_step"]),
                rate_text(policy["other_task"]),
            )
            for policy in driven
        ),
    )
    other = note('"Did another task": the robot fulfilled an instruction of the scene that was not given.')
    names = [policy["name"] for policy in driven]
    body = f"{legend(policies, names)}{''.join(groups)}{scale_row(*_SCALE)}{rules}{other}"
    return section("success", "Success", body)


def difference_section(result: Json, policies: Policies) -> str:
    """Paired differences of success."""
    comparisons = [one for one in result["comparisons"] if one["paired"] is not None]
    title = "Paired difference of success"
    if not comparisons:
        return section("difference", title, absent("No pair of whole episodes was run, so there is no difference."))
    reach = max(MARGIN, *(abs(one["paired"][end]) for one in comparisons for end in ("low", "high")))
    rows, cells = [], []
    for one in comparisons:
        paired, last = one["paired"], one["paired"]["at_last_step"]
        shown = Estimate(value=paired["difference"], low=paired["low"], high=paired["high"])
        mark = policies.marks[one["policy"]]
        track = interval_track(shown, series=mark, low=-reach, high=reach, lines=(0.0, -MARGIN))
        rows.append(row(policies.label(one["policy"]), track, points_interval(paired)))
        counts = [str(paired[name]) for name in ("both", "only_baseline", "only_candidate", "neither")]
        p_value = f"{paired['mcnemar_p']:.3g}"
        cells.append((policies.marked(one["policy"]), *counts, p_value, points_interval(last), _clustered(paired)))
    rows.append(scale_row(points(-reach), "0", points(reach)))
    header = (
        "policy",
        "both succeed",
        "lost",
        "won",
        "neither",
        "McNemar p",
        "at last step [points]",
        "clustered by task [points]",
    )
    against = policies.labels[comparisons[0]["against"]]
    words = note(
        f"Points of success, policy minus {against}, with Tango's interval; the dashed line is a loss of {MARGIN:g} "
        f'points. "Lost": only {against} succeeds; "won": only the policy does. Clustered by task: an interval about '
        "tasks like these ones."
    )
    pairs = table(f"Episodes in pairs, against {against}", header, cells)
    return section("difference", title, f'<div class="group">{"".join(rows)}</div>{words}{pairs}')


def _clustered(paired: Json) -> str:
    clustered = paired.get("clustered_by_task")
    return "not available" if clustered is None else f"[{points(clustered['low'])}, {points(clustered['high'])}]"
