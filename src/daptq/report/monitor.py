"""What the monitor of the interface said: when a shift was flagged in each condition, and what led to it."""

from __future__ import annotations

from dataclasses import dataclass

from daptq.report.elements import Section, Table
from daptq.report.labels import PolicyLabels
from daptq.report.table import monitor_rows
from daptq.report.wording import Json, readable, task_name

_TITLE = "Monitor"


@dataclass(frozen=True, kw_only=True)
class WatchedCondition:
    """Every watched episode of a condition."""

    condition: str
    episodes: Table


@dataclass(frozen=True, kw_only=True)
class Monitor:
    """What was flagged.

    Attributes:
        flags: What was flagged in each condition.
        reference_episodes: Number of nominal episodes that are compared with.
        horizon: Number of episodes within which `false_alarm_rate` holds.
        false_alarm_rate: Most probability of a flag while nothing changes, in percent with its sign.
        conditions: Every episode of each condition.
    """

    flags: Table
    reference_episodes: int
    horizon: int
    false_alarm_rate: str
    conditions: tuple[WatchedCondition, ...]


def monitor_section(result: Json, labels: PolicyLabels) -> Section:
    """One row per condition, and every episode of it to unfold."""
    conditions = [("nominal", result), *((one["variant"], one) for one in result.get("variants", ()))]
    watched = {name: entry["monitor"] for name, entry in conditions if "monitor" in entry}
    return Section(
        anchor="monitor",
        link=_TITLE,
        title=_TITLE,
        template="monitor.html",
        view=_view(watched, dict(monitor_rows(result)), labels) if watched else None,
        absent="" if watched else "Nothing was watched: daptq evaluate --monitor DIR does.",
    )


def _view(watched: dict[str, Json], flags: dict[str, str], labels: PolicyLabels) -> Monitor:
    first = next(iter(watched.values()))
    return Monitor(
        flags=Table(
            caption=f"Interface of {labels.label(first['policy'])}, {first['observed']}",
            header=("condition", "flag", "what was measured"),
            rows=[(readable(name), flags[name], one["explanation"]) for name, one in watched.items()],
        ),
        reference_episodes=first["reference_episodes"],
        horizon=first["horizon"],
        false_alarm_rate=f"{first['false_alarm_rate']:.0%}",
        conditions=tuple(
            WatchedCondition(condition=readable(name), episodes=_episodes(name, one)) for name, one in watched.items()
        ),
    )


def _episodes(name: str, monitor: Json) -> Table:
    return Table(
        caption=f"Every watched episode, {readable(name)}",
        header=("episode", "task", "score", "p", f"evidence (flag at {monitor['threshold']:g})", "flag"),
        rows=[
            (
                str(one["index"]),
                task_name(one["task"]),
                f"{one['score']:.3g}",
                f"{one['p_value']:.3g}",
                f"{one['statistic']:.3g}",
                "raised" if one["shifted"] else "down",
            )
            for one in monitor["episodes"]
        ],
    )
