"""Drift of the end-effector: how it grows after an identical state, and over whole episodes."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from daptq.report.elements import Section, Table, lines_of, small
from daptq.report.labels import PolicyLabels
from daptq.report.plots import Curve, growth_plot
from daptq.report.tracks import Estimate
from daptq.report.wording import NOTHING, Json, count_of, estimate

_UNITS = (("position_mm", "mm", "Position"), ("rotation_deg", "deg", "Rotation"))
_WHOLE = ("episode RMS", "median of episodes", "until contact differs")


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A figure with its heading."""

    title: str
    figure: Markup


@dataclass(frozen=True, kw_only=True)
class Drift:
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


def drift_section(result: Json, labels: PolicyLabels) -> Section:
    """Growth curves with their bands, and a table."""
    comparisons = result["comparisons"]
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


def _view(comparisons: list[Json], labels: PolicyLabels) -> Drift:
    first = comparisons[0]["drift"]["identical_states"]
    steps = (f"after {count_of(entry['steps'], 'step')}" for entry in first["after_steps"])
    return Drift(
        states=first["n"],
        episodes=first["episodes"],
        candidates=tuple(one["policy"] for one in comparisons),
        plots=tuple(_plot(comparisons, labels, *unit) for unit in _UNITS) if first["n"] else (),
        numbers=Table(
            caption="Drift in mm, below it in deg: median after steps from identical states; over whole episodes",
            header=("policy", *steps, *_WHOLE),
            rows=[(labels.marked(one["policy"]), *_cells(one["drift"])) for one in comparisons],
        ),
    )


def _plot(comparisons: list[Json], labels: PolicyLabels, name: str, unit: str, what: str) -> Plot:
    curves, readings = [], []
    for comparison in comparisons:
        growth = comparison["drift"]["identical_states"]["growth"]
        curves.append(
            Curve(
                series=labels.marks[comparison["policy"]],
                places=(0.0, *(entry["steps"] for entry in growth)),
                estimates=(Estimate(value=0.0, low=0.0, high=0.0), *(Estimate(**entry[name]) for entry in growth)),
            )
        )
        last = f"{estimate(growth[-1][name])} {unit} after {count_of(growth[-1]['steps'], 'step')}"
        readings.append(f"{labels.label(comparison['policy'])}: {last}")
    figure = growth_plot(
        curves,
        unit=unit,
        across="control steps",
        title=f"{what} drift [{unit}]",
        description="; ".join(readings) + ".",
    )
    return Plot(title=f"{what} drift", figure=figure)


def _cells(drift: Json) -> list[str]:
    after_steps = drift["identical_states"]["after_steps"]
    cells = [_pair(entry["position_mm"]["median"], entry["rotation_deg"]["median"]) for entry in after_steps]
    whole = drift["whole_episode"]
    if whole is None:
        return [*cells, NOTHING, NOTHING, NOTHING]
    names = ("rms", "median_of_episodes")
    cells += [_pair(whole["position_mm"][name], whole["rotation_deg"][name]) for name in names]
    alike = whole["until_contact_differs"]
    if not alike["n"]:
        return [*cells, NOTHING]
    steps = small(f"{count_of(round(alike['steps']['value']), 'step')}, n = {alike['n']}")
    return [*cells, lines_of(_pair(alike["position_mm"], alike["rotation_deg"]), steps)]


def _pair(position: Json, rotation: Json) -> Markup:
    return lines_of(estimate(position), estimate(rotation))
