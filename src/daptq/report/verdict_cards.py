"""The first thing on the page: a card per comparison with its verdict and the numbers that a reader wants first."""

from __future__ import annotations

from dataclasses import dataclass

from daptq.metrics.drift import headline_drift
from daptq.report.labels import PolicyLabels
from daptq.report.table import rate_text
from daptq.report.verdict import FAIL, MARGIN, PASS, Verdict, verdict
from daptq.report.wording import NOTHING, TIMES, Json, count_of, points, points_ends


@dataclass(frozen=True, kw_only=True)
class Stopping:
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
    stopping: Stopping | None
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
    result: Json, labels: PolicyLabels, benchmark: Json | None
) -> tuple[VerdictCard, ...] | tuple[UnjudgedCard, ...]:
    """A card per comparison; without a baseline, one per policy."""
    policies = {policy["name"]: policy for policy in result["policies"]}
    if not result["comparisons"]:
        return tuple(UnjudgedCard(policy=labels.label(name), success=_success(one)) for name, one in policies.items())
    return tuple(_card(comparison, policies, labels, benchmark) for comparison in result["comparisons"])


def _card(comparison: Json, policies: Json, labels: PolicyLabels, benchmark: Json | None) -> VerdictCard:
    gate, stopping = comparison.get("gate"), comparison.get("stopping")
    return VerdictCard(
        policy=labels.label(comparison["policy"]),
        verdict=verdict(comparison),
        stopping=None if stopping is None else _stopping(stopping),
        checks=None if gate is None else tuple(_check(check) for check in gate["checks"]),
        default_margin=MARGIN if gate is None and stopping is None else None,
        tiles=tuple(_tiles(comparison, policies, labels, benchmark)),
    )


def _stopping(stopping: Json) -> Stopping:
    return Stopping(
        pairs=stopping["pairs"],
        planned=stopping["planned"],
        interval=points_ends(stopping),
        margin=100 * stopping["margin"],
    )


def _check(check: Json) -> Check:
    return Check(outcome=PASS if check["passed"] else FAIL, name=check["name"], reason=check["reason"])


def _tiles(comparison: Json, policies: Json, labels: PolicyLabels, benchmark: Json | None) -> list[Tile]:
    """The numbers that matter most; what was not measured says so."""
    candidate, baseline = policies[comparison["policy"]], policies[comparison["against"]]
    paired, found = comparison["paired"], []
    if paired is not None:
        against = f"{labels.label(comparison['against'])}: {100 * baseline['success_rate']:.1f} %"
        found.append(Tile(name="success", value=f"{100 * candidate['success_rate']:.1f} %", aside=against))
        difference = f"{points(paired['difference'])} points"
        found.append(Tile(name="difference", value=difference, aside=points_ends(paired)))
    drift = headline_drift(comparison["drift"]["identical_states"])
    if drift is not None:
        position, rotation = drift["position_mm"]["median"]["value"], drift["rotation_deg"]["median"]["value"]
        name = f"drift after {count_of(drift['steps'], 'step')}"
        found.append(Tile(name=name, value=f"{position:.3g} mm", aside=f"{rotation:.2g} deg, medians"))
    used, full = (one["weights"]["bytes_in_memory"] for one in (candidate, baseline))
    found.append(Tile(name="weights in memory", value=f"{used / full:.2f} {TIMES}", aside=f"{used / 2**20:.1f} MiB"))
    found.append(_latency(comparison["policy"], benchmark))
    return found


def _latency(name: str, benchmark: Json | None) -> Tile:
    """The ratio of a policy's times to those of the fastest way to run the baseline in floating point."""
    ratio = None if benchmark is None else benchmark["ratio_to_float_path"].get(name)
    if benchmark is None or ratio is None:
        return Tile(name="latency", value=NOTHING, aside="not measured")
    return Tile(name="latency", value=f"{ratio['value']:.2f} {TIMES}", aside=f"of {benchmark['float_path']['name']}")


def _success(policy: Json) -> str:
    return rate_text(policy) if "success_rate" in policy else "was not measured"
