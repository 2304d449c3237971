"""The sensitivity that the bit plan went by: the score of every layer, and the highest ones by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from daptq.evaluation.description import LinearLayer
from daptq.evaluation.result import EvaluationResult, PolicyResult
from daptq.report.elements import Section, Table, code
from daptq.report.labels import PolicyLabels
from daptq.report.layer_bits import KEPT_BITS, is_quantized
from daptq.report.plots import Point, scatter_plot
from daptq.report.wording import readable

_MOST_SENSITIVE = 10

# Axis and meaning of a score, by the method that gave it.
_SCORES = {
    "phi": ("\N{GREEK SMALL LETTER PHI}", "the paper's sensitivity \N{GREEK SMALL LETTER PHI}"),
    "rounding": (
        "mm\N{SUPERSCRIPT TWO}",
        "the drift that the layer causes at the bits it got, squared [mm\N{SUPERSCRIPT TWO}]",
    ),
}


@dataclass(frozen=True, kw_only=True)
class ScoredLayer:
    """A layer with a score above 0, why it has its bits, and what it is."""

    name: str
    score: float
    reason: str
    layer: LinearLayer


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The scored layers of a policy.

    Attributes:
        figure: Their scores in the order in which they run.
        meaning: What a score is.
        count: How many layers were scored.
        highest: The most sensitive layers.
    """

    figure: Markup
    meaning: str
    count: int
    highest: Table


@dataclass(frozen=True, kw_only=True)
class PolicyScores:
    """The scores of a quantized policy, or why there are none."""

    policy: str
    scores: Scores | None
    absent: str = ""


@dataclass(frozen=True, kw_only=True)
class LayerScores:
    """The scores of every quantized policy, and the bits from which a layer counts as kept."""

    policies: tuple[PolicyScores, ...]
    kept_bits: int


def layer_scores_section(result: EvaluationResult, labels: PolicyLabels) -> Section:
    """Scores of the layers that were scored, and the highest ones by name."""
    policies = tuple(_policy(policy, labels.label(policy.name)) for policy in result.policies if is_quantized(policy))
    return Section(
        anchor="sensitivity",
        link="Sensitivity",
        title="Sensitivity of layers",
        template="layer_scores.html",
        view=LayerScores(policies=policies, kept_bits=KEPT_BITS),
        absent="" if policies else "No policy is quantized, so no layer was scored.",
    )


def _policy(policy: PolicyResult, label: str) -> PolicyScores:
    plan = policy.plan
    if plan is None:
        return PolicyScores(policy=label, scores=None, absent="The policy came without its plan.")
    if plan.sensitivity is None:
        absent = "No layer was scored: its method gives bits by role alone."
        return PolicyScores(policy=label, scores=None, absent=absent)
    described = {layer.name: layer for layer in policy.layers}
    scored = [
        ScoredLayer(name=one.name, score=one.score, reason=str(one.reason), layer=described[one.name])
        for one in plan.layers
        if one.score is not None and one.score > 0
    ]
    if not scored:
        return PolicyScores(policy=label, scores=None, absent="Every score is 0.")
    return PolicyScores(policy=label, scores=_scores(label, plan.sensitivity, scored))


def _scores(label: str, sensitivity: str, scored: Sequence[ScoredLayer]) -> Scores:
    axis, meaning = _SCORES.get(sensitivity, ("", f"score by {sensitivity}"))
    points = [
        Point(
            value=one.score,
            solid=one.layer.num_bits < KEPT_BITS,
            group=readable(one.layer.role),
            title=f"{one.name}: {one.score:.3g}, {one.layer.num_bits} bits ({one.reason})",
        )
        for one in scored
    ]
    highest = sorted(scored, key=lambda one: -one.score)[:_MOST_SENSITIVE]
    top = f"The highest score is {highest[0].score:.3g}, of {highest[0].name}."
    return Scores(
        figure=scatter_plot(points, unit=axis, title=f"Sensitivity of the layers of {label}", description=top),
        meaning=meaning,
        count=len(scored),
        highest=Table(
            caption=f"The {len(highest)} most sensitive layers",
            header=("layer", "role", "score", "bits", "reason"),
            rows=[
                (code(one.name), readable(one.layer.role), f"{one.score:.3g}", str(one.layer.num_bits), one.reason)
                for one in highest
            ],
        ),
    )
