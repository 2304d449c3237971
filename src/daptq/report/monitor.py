"""What the monitor of the interface said: when a shift was flagged in each condition, and what led to it."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from daptq.report.markup import Json, Policies, absent, note, section, table, task_name
from daptq.report.table import monitor_rows

_TITLE = "Monitor"


def monitor_section(result: Json, policies: Policies) -> str:
    """One row per condition, and every episode of it to unfold."""
    watched = list(_watched(result))
    if not watched:
        return section("monitor", _TITLE, absent("Nothing was watched: daptq evaluate --monitor DIR does."))
    first = watched[0][1]
    said = dict(monitor_rows(result))
    rows = [(_condition(name), escape(said[name]), escape(one["explanation"])) for name, one in watched]
    caption = f"Interface of {policies.labels.get(first['policy'], first['policy'])}, {first['observed']}"
    about = note(
        f"Compared with {first['reference_episodes']} nominal episodes. While nothing changes, a flag is raised within "
        f"{first['horizon']} episodes with probability {first['false_alarm_rate']:.0%} at most, where initial states "
        "are drawn at random. A flag says that what the policy perceives has changed, not that it fails."
    )
    listed = "".join(_episodes(name, one) for name, one in watched)
    return section("monitor", _TITLE, table(caption, ("condition", "flag", "what was measured"), rows) + about + listed)


def _watched(result: Json) -> Iterator[tuple[str, Json]]:
    """The conditions in which the policy was watched."""
    for name, entry in (("nominal", result), *((one["variant"], one) for one in result.get("variants", ()))):
        if "monitor" in entry:
            yield name, entry["monitor"]


def _condition(name: str) -> str:
    return escape(name.replace("_", " "))


def _episodes(name: str, monitor: Json) -> str:
    rows = [
        (
            str(one["index"]),
            escape(task_name(one["task"])),
            f"{one['score']:.3g}",
            f"{one['p_value']:.3g}",
            f"{one['statistic']:.3g}",
            "raised" if one["shifted"] else "down",
        )
        for one in monitor["episodes"]
    ]
    header = ("episode", "task", "score", "p", f"evidence (flag at {monitor['threshold']:g})", "flag")
    listed = table(f"Every watched episode, {name.replace('_', ' ')}", header, rows)
    return f"<details><summary>Episodes, {_condition(name)}</summary>{listed}</details>"
