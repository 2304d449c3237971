"""The verdict: pass, fail or undecided, with the reason, and the numbers that a reader wants first.

A gate that was asked for decides alone; after an early stop, the interval that holds at all looks does. Otherwise the
question is whether a loss of `MARGIN` points of success is ruled out. Nothing is judged beyond what the intervals in
the result say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from statistics import NormalDist

from daptq.metrics.drift import headline_drift
from daptq.report.markup import (
    NOTHING,
    Json,
    Policies,
    count_of,
    note,
    points,
    points_interval,
)
from daptq.report.table import rate_text
from daptq.statistics.intervals import CONFIDENCE
from daptq.statistics.sequential import POWER

MARGIN = 5.0

PASS, FAIL, UNDECIDED = "pass", "fail", "undecided"
_SYMBOLS = {
    PASS: '<circle r="11"/><path class="glyph" d="M-5,0.5 L-1.5,4 L5,-4"/>',
    FAIL: '<path d="M-5,-11 H5 L11,-5 V5 L5,11 H-5 L-11,5 V-5 Z"/><path class="glyph" d="M-4,-4 L4,4 M-4,4 L4,-4"/>',
    UNDECIDED: '<path d="M0,-12 L12,9.5 H-12 Z"/><path class="glyph" d="M0,-4.5 V2 M0,5.6 V5.8"/>',
}


# What an early stop found: outcome and headline.
_STOPPED = {
    "non-inferior": (PASS, "a loss of {points} is ruled out"),
    "inferior": (FAIL, "more than {points} are lost"),
    "undecided": (UNDECIDED, "too few episodes to tell"),
}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a comparison comes to.

    Attributes:
        outcome: `PASS`, `FAIL` or `UNDECIDED`.
        headline: The finding in a few words.
        reason: The numbers behind it.
    """

    outcome: str
    headline: str
    reason: str


def verdict(comparison: Json) -> Verdict:
    """Judges one comparison.

    Args:
        comparison: One entry of the result's `comparisons`.
    """
    gate = comparison.get("gate")
    if gate is not None:
        kept = sum(check["passed"] for check in gate["checks"])
        if gate["passed"]:
            return Verdict(outcome=PASS, headline="every limit of the gate is kept", reason=_difference(comparison))
        headline = f"{len(gate['checks']) - kept} of {count_of(len(gate['checks']), 'limit')} of the gate not kept"
        return Verdict(outcome=FAIL, headline=headline, reason=_difference(comparison))
    stopping = comparison.get("stopping")
    if stopping is not None:
        outcome, words = _STOPPED[stopping["verdict"]]
        headline = words.format(points=f"{100 * stopping['margin']:g} points")
        return Verdict(outcome=outcome, headline=headline, reason=_difference(comparison))
    paired = comparison["paired"]
    if paired is None:
        reason = "The policies only continued from saved states; success was not measured."
        return Verdict(outcome=UNDECIDED, headline="no whole episodes were run", reason=reason)
    difference = _difference(comparison)
    if paired["low"] > -MARGIN:
        reason = f"{difference} The whole interval lies above {points(-MARGIN)}."
        return Verdict(outcome=PASS, headline=f"a loss of {MARGIN:g} points is ruled out", reason=reason)
    reaches = f"The interval reaches down to {points(paired['low'])}"
    if paired["high"] < 0:
        reason = f"{difference} {reaches} and does not contain 0."
        return Verdict(outcome=FAIL, headline="success is lower", reason=reason)
    reason = (
        f"{difference} {reaches}, so a loss of {MARGIN:g} points is not ruled out, and up to {points(paired['high'])}, "
        f"so no loss is shown either.{_more_pairs(paired)}"
    )
    return Verdict(outcome=UNDECIDED, headline="too few episodes to tell", reason=reason)


def verdicts(result: Json, policies: Policies, benchmark: Json | None) -> str:
    """A card per comparison, the first thing on the page."""
    rates = {policy["name"]: policy for policy in result["policies"]}
    cards = [
        _card(comparison, rates[comparison["policy"]], rates[comparison["against"]], policies, result, benchmark)
        for comparison in result["comparisons"]
    ]
    if not cards:
        cards = [
            f'<article class="verdict undecided"><h2>{symbol(UNDECIDED)}<span><b>No verdict</b> '
            f"{policies.label(name)}: success {_success(rate)}</span></h2>"
            "<p>No baseline was given, so nothing is said about a loss.</p></article>"
            for name, rate in rates.items()
        ]
    return "".join(cards)


def symbol(outcome: str) -> str:
    """The sign of an outcome; its shape says as much as its colour."""
    return f'<svg class="symbol {outcome}" viewBox="-13 -13 26 26" aria-hidden="true">{_SYMBOLS[outcome]}</svg>'


def _card(
    comparison: Json, candidate: Json, baseline: Json, policies: Policies, result: Json, benchmark: Json | None
) -> str:
    found = verdict(comparison)
    gate = comparison.get("gate")
    checks = _stopping(comparison)
    if gate is None and not checks:
        rule = f"Judged by a margin of {MARGIN:g} points of success, the default; --gate of daptq evaluate sets limits."
        checks = note(rule)
    elif gate is not None:
        limits = "".join(
            f"<li>{symbol(PASS if check['passed'] else FAIL)}<span><b>{'kept' if check['passed'] else 'not kept'}</b> "
            f"{escape(check['name'])}: {escape(check['reason'])}</span></li>"
            for check in gate["checks"]
        )
        checks += f'<ul class="checks">{limits}</ul>'
    tiles = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(aside)}</small></dd></div>"
        for name, value, aside in _tiles(comparison, candidate, baseline, policies, result, benchmark)
    )
    outcome = f"{symbol(found.outcome)}<span><b>{found.outcome.capitalize()}</b> "
    return (
        f'<article class="verdict {found.outcome}"><h2>{outcome}'
        f"{policies.label(comparison['policy'])}: {escape(found.headline)}</span></h2>"
        f'<p>{escape(found.reason)}</p>{checks}<dl class="tiles">{tiles}</dl></article>'
    )


def _stopping(comparison: Json) -> str:
    """How an evaluation that may stop early ended, or nothing."""
    stopping = comparison.get("stopping")
    if stopping is None:
        return ""
    return note(
        f"Looked at early: {stopping['pairs']} of {count_of(stopping['planned'], 'planned pair')}. The interval that "
        f"holds at all looks, {_ends(stopping)}, alone counts for the margin of {100 * stopping['margin']:g} points."
    )


def _tiles(
    comparison: Json, candidate: Json, baseline: Json, policies: Policies, result: Json, benchmark: Json | None
) -> list[tuple[str, str, str]]:
    """Name, value and an aside of the numbers that matter most; what was not measured says so."""
    against = policies.labels[comparison["against"]]
    found = []
    if comparison["paired"] is not None:
        rate = f"{100 * candidate['success_rate']:.1f} %"
        found.append(("success", rate, f"{against}: {100 * baseline['success_rate']:.1f} %"))
        found.append(
            ("difference", f"{points(comparison['paired']['difference'])} points", _ends(comparison["paired"]))
        )
    headline = headline_drift(comparison["drift"]["identical_states"])
    if headline is not None:
        position, rotation = headline["position_mm"]["median"], headline["rotation_deg"]["median"]
        name = f"drift after {count_of(headline['steps'], 'step')}"
        found.append((name, f"{position['value']:.3g} mm", f"{rotation['value']:.2g} deg, medians"))
    used, full = (one["weights"]["bytes_in_memory"] for one in (candidate, baseline))
    found.append(("weights in memory", f"{used / full:.2f} \N{MULTIPLICATION SIGN}", f"{used / 2**20:.1f} MiB"))
    found.append(("latency", *_latency(comparison["policy"], against, result, benchmark)))
    return found


def _latency(name: str, against: str, result: Json, benchmark: Json | None) -> tuple[str, str]:
    """The ratio of times of a policy, and what it is against."""
    ratio = (benchmark or {}).get("ratio_to_float_path", {}).get(name)
    if ratio is not None and benchmark is not None:
        return f"{ratio['value']:.2f} \N{MULTIPLICATION SIGN}", f"of {benchmark['float_path']['name']}"
    entries = {entry["name"]: entry for entry in result.get("latency", {}).get("policies", ())}
    if "ratio" in entries.get(name, {}):
        return f"{entries[name]['ratio']['value']:.2f} \N{MULTIPLICATION SIGN}", f"of {against}"
    return NOTHING, "not measured"


def _difference(comparison: Json) -> str:
    paired = comparison["paired"]
    if paired is None:
        return "Success was not measured."
    return (
        f"Success against the baseline: {points_interval(paired)} points (95 % interval, "
        f"{count_of(paired['n'], 'pair')}; {paired['only_baseline']} lost, {paired['only_candidate']} won, exact "
        f"McNemar p = {paired['mcnemar_p']:.2g})."
    )


def _more_pairs(paired: Json) -> str:
    """How many pairs would do, by the normal approximation, if both policies were equally good."""
    discordant = (paired["only_baseline"] + paired["only_candidate"]) / paired["n"]
    if discordant == 0.0:
        return ""
    quantiles = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2) + NormalDist().inv_cdf(POWER)
    needed = quantiles**2 * discordant / (MARGIN / 100) ** 2
    return f" If both are equally good, about {float(f'{needed:.2g}'):.0f} pairs settle it."


def _ends(paired: Json) -> str:
    return f"[{points(paired['low'])}, {points(paired['high'])}]"


def _success(rate: Mapping[str, object]) -> str:
    return escape(rate_text(rate)) if "success_rate" in rate else "was not measured"
