"""Drift of the end-effector: how it grows after an identical state, and over whole episodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from daptq.evaluation.comparison import Comparison
from daptq.evaluation.result import EvaluationResult
from daptq.metrics.deviation import Drift, GrowthAfter
from daptq.report.elements import Section, Table, lines_of, small
from daptq.report.labels import PolicyLabels
from daptq.report.plots import Curve, growth_plot
from daptq.report.wording import NOTHING, count_of, estimate
from daptq.statistics.estimate import Estimate

_WHOLE = ("episode RMS", "median of episodes", "until contact differs")


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A figure with its heading."""

    title: str
    figure: Markup


@dataclass(frozen=True, kw_only=True)
class DriftView:
    """Drift of every candidate.

    Attributes:
        states: Number of states from which every policy continues; 0 where none was saved.
        episodes: Number of the baseline's episodes that the states are from.
        candidates: Names of the candidates.
        plots: How position and rotation drift after a state.
        numbers: Drift after some steps, and over whole episodes.
    """

    states: int
    episodes: int
    candidates: tuple[str, ...]
    plots: tuple[Plot, ...]
    numbers: Table


def drift_section(result: EvaluationResult, labels: PolicyLabels) -> Section:
    """Growth curves with their bands, and a table."""
    comparisons = result.comparisons
    absent = "" if comparisons else "No baseline was given, so there is nothing to drift from."
    view = _view(comparisons, labels) if comparisons else None
    return Section(
        anchor="drift",
        link="Drift",
        title="Drift of the end-effector",
        template="drift.html",
        view=view,
        absent=absent,
    )


def _view(comparisons: Sequence[Comparison], labels: PolicyLabels) -> DriftView:
    first = comparisons[0].drift.identical_states
    steps = (f"after {count_of(entry.steps, 'step')}" for entry in first.after_steps)
    return DriftView(
        states=first.n,
        episodes=first.episodes,
        candidates=tuple(one.policy for one in comparisons),
        plots=(
            (
                _plot("Position", "mm", lambda entry: entry.position_mm, comparisons, labels),
                _plot("Rotation", "deg", lambda entry: entry.rotation_deg, comparisons, labels),
            )
            if first.n
            else ()
        ),
        numbers=Table(
            caption="Drift in mm, below it in deg: median after steps from identical states; over whole episodes",
            header=("policy", *steps, *_WHOLE),
            rows=[(labels.marked(one.policy), *_cells(one.drift)) for one in comparisons],
        ),
    )


def _plot(
    what: str,
    unit: str,
    median: Callable[[GrowthAfter], Estimate],
    comparisons: Sequence[Comparison],
    labels: PolicyLabels,
) -> Plot:
    """How a deviation grows; `median` takes it from an entry."""
    start = Estimate(value=0.0, low=0.0, high=0.0)
    curves, readings = [], []
    for comparison in comparisons:
        growth = comparison.drift.identical_states.growth
        curves.append(
            Curve(
                series=labels.marks[comparison.policy],
                places=(0.0, *(float(entry.steps) for entry in growth)),
                estimates=(start, *(median(entry) for entry in growth)),
            )
        )
        last = f"{estimate(median(growth[-1]))} {unit} after {count_of(growth[-1].steps, 'step')}"
        readings.append(f"{labels.label(comparison.policy)}: {last}")
    figure = growth_plot(
        curves,
        unit=unit,
        across="control steps",
        title=f"{what} drift [{unit}]",
        description="; ".join(readings) + ".",
    )
    return Plot(title=f"{what} drift", figure=figure)


def _cells(drift: Drift) -> list[str]:
    after_steps = drift.identical_states.after_steps
    cells: list[str] = [_pair(entry.position_mm.median, entry.rotation_deg.median) for entry in after_steps]
    whole = drift.whole_episode
    if whole is None:
        return [*cells, NOTHING, NOTHING, NOTHING]
    position, rotation, alike = whole.position_mm, whole.rotation_deg, whole.until_contact_differs
    cells += [_pair(position.rms, rotation.rms), _pair(position.median_of_episodes, rotation.median_of_episodes)]
    if alike.steps is None or alike.position_mm is None or alike.rotation_deg is None:
        return [*cells, NOTHING]
    steps = small(f"{count_of(round(alike.steps.value), 'step')}, n = {alike.n}")
    return [*cells, lines_of(_pair(alike.position_mm, alike.rotation_deg), steps)]


def _pair(position: Estimate, rotation: Estimate) -> Markup:
    return lines_of(estimate(position), estimate(rotation))
