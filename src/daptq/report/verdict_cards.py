"""The first thing on the page: a card per comparison with its verdict and the numbers that a reader wants first."""

from __future__ import annotations

from dataclasses import dataclass

from daptq.benchmarking.result import BenchmarkResult
from daptq.evaluation.comparison import Comparison, GateCheck, Stopping
from daptq.evaluation.result import EvaluationResult, PolicyResult
from daptq.report.labels import PolicyLabels
from daptq.report.verdict import FAIL, MARGIN, PASS, Verdict, verdict
from daptq.report.wording import NOTHING, TIMES, count_of, points, points_ends, rate_text


@dataclass(frozen=True, kw_only=True)
class EarlyEnd:
    """How an evaluation that may stop early ended.

    Attributes:
        pairs: Pairs of episodes that were run.
        planned: Pairs that there would have been at most.
        interval: The interval that holds at all looks.
        margin: The loss in question, in percentage points.
    """

    pairs: int
    planned: int
    interval: str
    margin: float


@dataclass(frozen=True, kw_only=True)
class Check:
    """A limit of the gate, whether it is kept (`PASS`) or not (`FAIL`), and why."""

    outcome: str
    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A number with its name above and what it is to be compared with below."""

    name: str
    value: str
    aside: str


@dataclass(frozen=True, kw_only=True)
class VerdictCard:
    """The verdict on one comparison.

    Attributes:
        policy: Label of the candidate.
        verdict: What the comparison comes to.
        stopping: How an evaluation that may stop early ended.
        checks: Limits of the gate; None where no gate was asked for.
        default_margin: The default limit, in percentage points, where it is what decides.
        tiles: The numbers that matter most.
    """

    policy: str
    verdict: Verdict
    stopping: EarlyEnd | None
    checks: tuple[Check, ...] | None
    default_margin: float | None
    tiles: tuple[Tile, ...]


@dataclass(frozen=True, kw_only=True)
class UnjudgedCard:
    """A policy that was compared with none; `verdict` is None, by which the template knows it."""

    policy: str
    success: str
    verdict: None = None


def verdict_cards(
    result: EvaluationResult, labels: PolicyLabels, benchmark: BenchmarkResult | None
) -> tuple[VerdictCard, ...] | tuple[UnjudgedCard, ...]:
    """A card per comparison; without a baseline, one per policy."""
    if not result.comparisons:
        return tuple(UnjudgedCard(policy=labels.label(one.name), success=_success(one)) for one in result.policies)
    policies = {policy.name: policy for policy in result.policies}
    return tuple(
        VerdictCard(
            policy=labels.label(one.policy),
            verdict=verdict(one),
            stopping=None if one.stopping is None else _early_end(one.stopping),
            checks=None if one.gate is None else tuple(map(_check, one.gate.checks)),
            default_margin=MARGIN if one.gate is None and one.stopping is None else None,
            tiles=tuple(_tiles(one, policies[one.policy], policies[one.against], labels, benchmark)),
        )
        for one in result.comparisons
    )


def _early_end(stopping: Stopping) -> EarlyEnd:
    return EarlyEnd(
        pairs=stopping.pairs,
        planned=stopping.planned,
        interval=points_ends(stopping.low, stopping.high),
        margin=100 * stopping.margin,
    )


def _check(check: GateCheck) -> Check:
    return Check(outcome=PASS if check.passed else FAIL, name=check.name, reason=check.reason)


def _tiles(
    comparison: Comparison,
    candidate: PolicyResult,
    baseline: PolicyResult,
    labels: PolicyLabels,
    benchmark: BenchmarkResult | None,
) -> list[Tile]:
    """The numbers that matter most; what was not measured says so."""
    paired, found = comparison.paired, []
    if paired is not None and candidate.success is not None and baseline.success is not None:
        against = f"{labels.label(baseline.name)}: {100 * baseline.success.success_rate:.1f} %"
        found.append(Tile(name="success", value=f"{100 * candidate.success.success_rate:.1f} %", aside=against))
        difference = f"{points(paired.difference)} points"
        found.append(Tile(name="difference", value=difference, aside=points_ends(paired.low, paired.high)))
    drift = comparison.drift.identical_states.headline
    if drift is not None:
        name = f"drift after {count_of(drift.steps, 'step')}"
        aside = f"{drift.rotation_deg.median.value:.2g} deg, medians"
        found.append(Tile(name=name, value=f"{drift.position_mm.median.value:.3g} mm", aside=aside))
    used, full = (one.weights.bytes_in_memory for one in (candidate, baseline))
    found.append(Tile(name="weights in memory", value=f"{used / full:.2f} {TIMES}", aside=f"{used / 2**20:.1f} MiB"))
    found.append(_latency(candidate.name, benchmark))
    return found


def _latency(name: str, benchmark: BenchmarkResult | None) -> Tile:
    """The ratio of a policy's times to those of the fastest way to run the baseline in floating point."""
    ratio = None if benchmark is None else benchmark.ratio_to_float_path.get(name)
    if benchmark is None or ratio is None:
        return Tile(name="latency", value=NOTHING, aside="not measured")
    return Tile(name="latency", value=f"{ratio.value:.2f} {TIMES}", aside=f"of {benchmark.float_path.name}")


def _success(policy: PolicyResult) -> str:
    return "was not measured" if policy.success is None else rate_text(policy.success)
