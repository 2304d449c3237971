"""Success on variants of the environment, and the robustness gap: how much more quantization costs there."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from daptq.evaluation.result import EvaluationResult
from daptq.evaluation.variant_result import RobustnessGap, VariantResult
from daptq.report.elements import Group, Line, Section, Table
from daptq.report.labels import PolicyLabels
from daptq.report.tracks import interval_track, scale
from daptq.report.wording import NOTHING, points, points_interval, rate_text, readable
from daptq.statistics.estimate import Estimate

_TITLE = "Robustness"


@dataclass(frozen=True, kw_only=True)
class RobustnessView:
    """Gaps and rates on every variant.

    Attributes:
        gaps: Gaps of every candidate, by variant; empty without a baseline.
        scale: Labels of the gaps' axis.
        rates: Success of every policy in every condition.
    """

    gaps: tuple[Group, ...]
    scale: Markup
    rates: Table


def robustness_section(result: EvaluationResult, labels: PolicyLabels) -> Section:
    """One line per variant and candidate, and a table of rates."""
    variants = result.variants
    return Section(
        anchor="robustness",
        link=_TITLE,
        title=_TITLE,
        template="robustness.html",
        view=_view(result, variants, labels) if variants else None,
        absent="" if variants else "No variant was run: daptq evaluate --variant all runs every one.",
    )


def _view(result: EvaluationResult, variants: tuple[VariantResult, ...], labels: PolicyLabels) -> RobustnessView:
    gaps = [(readable(entry.variant), entry.robustness_gap) for entry in variants]
    if len(variants) > 1:
        gaps.append(("all variants", result.robustness_gap or ()))
    ends = (abs(end) for _, entries in gaps for one in entries for end in (one.low, one.high))
    reach = max(ends, default=0.0) or 1.0
    successes = (policy.success for policy in result.policies)
    nominal = (NOTHING if one is None else rate_text(one) for one in successes)
    rows = [("nominal", "the scene that policies were trained in", *nominal)]
    rows += [(readable(entry.variant), entry.description, *map(rate_text, entry.policies)) for entry in variants]
    return RobustnessView(
        gaps=tuple(
            Group(title=name.capitalize(), lines=tuple(_gap(one, labels, reach) for one in entries))
            for name, entries in gaps
            if entries
        ),
        scale=scale(points(-reach), "0", points(reach)),
        rates=Table(
            caption=f"Success on variants, n = {result.episodes} each",
            header=("condition", "what changes", *(labels.label(policy.name) for policy in result.policies)),
            rows=rows,
        ),
    )


def _gap(gap: RobustnessGap, labels: PolicyLabels, reach: float) -> Line:
    shown = Estimate(value=gap.value, low=gap.low, high=gap.high)
    track = interval_track(shown, series=labels.marks[gap.policy], low=-reach, high=reach, lines=(0.0,))
    return Line(name=labels.label(gap.policy), track=track, number=points_interval(gap.value, gap.low, gap.high))
