"""What the monitor of the interface said: when a shift was flagged in each condition, and what led to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from daptq.evaluation.result import EvaluationResult
from daptq.monitoring.summary import MonitorSummary
from daptq.report.elements import Section, Table
from daptq.report.labels import PolicyLabels
from daptq.report.wording import monitor_flag, readable, task_name

_TITLE = "Monitor"


@dataclass(frozen=True, kw_only=True)
class WatchedCondition:
    """Every watched episode of a condition."""

    condition: str
    episodes: Table


@dataclass(frozen=True, kw_only=True)
class MonitorView:
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


def monitor_section(result: EvaluationResult, labels: PolicyLabels) -> Section:
    """One row per condition, and every episode of it to unfold."""
    conditions = [("nominal", result.monitor), *((one.variant, one.monitor) for one in result.variants or ())]
    watched = {name: monitor for name, monitor in conditions if monitor is not None}
    return Section(
        anchor="monitor",
        link=_TITLE,
        title=_TITLE,
        template="monitor.html",
        view=_view(watched, labels) if watched else None,
        absent="" if watched else "Nothing was watched: daptq evaluate --monitor DIR does.",
    )


def _view(watched: Mapping[str, MonitorSummary], labels: PolicyLabels) -> MonitorView:
    first = next(iter(watched.values()))
    return MonitorView(
        flags=Table(
            caption=f"Interface of {labels.label(first.policy)}, {first.observed}",
            header=("condition", "flag", "what was measured"),
            rows=[(readable(name), monitor_flag(one), one.explanation) for name, one in watched.items()],
        ),
        reference_episodes=first.reference_episodes,
        horizon=first.horizon,
        false_alarm_rate=f"{first.false_alarm_rate:.0%}",
        conditions=tuple(
            WatchedCondition(condition=readable(name), episodes=_episodes(name, one)) for name, one in watched.items()
        ),
    )


def _episodes(name: str, monitor: MonitorSummary) -> Table:
    return Table(
        caption=f"Every watched episode, {readable(name)}",
        header=("episode", "task", "score", "p", f"evidence (flag at {monitor.threshold:g})", "flag"),
        rows=[
            (
                str(one.index),
                task_name(one.task),
                f"{one.score:.3g}",
                f"{one.p_value:.3g}",
                f"{one.statistic:.3g}",
                "raised" if one.shifted else "down",
            )
            for one in monitor.episodes
        ],
    )
