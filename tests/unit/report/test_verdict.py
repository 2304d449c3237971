"""The verdict follows the interval, or the gate where one was asked for."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from daptq.evaluation.comparison import Comparison
from daptq.evaluation.gate import Gate
from daptq.report import write_report
from daptq.report.verdict import FAIL, PASS, UNDECIDED, verdict
from tests.unit.made_up_results import typed


def judged(comparison: dict[str, Any], low: float, high: float) -> Any:
    changed = copy.deepcopy(comparison)
    changed["paired"].update(low=low, high=high, difference=(low + high) / 2)
    return verdict(Comparison.from_json(changed))


@pytest.mark.parametrize(
    ("low", "high", "outcome", "headline"),
    [
        (-20.0, -6.0, FAIL, "success is lower"),
        (-20.0, -0.1, FAIL, "success is lower"),
        (-4.9, -0.1, PASS, "a loss of 5 points is ruled out"),  # lower, but by less than the margin
        (-4.9, 3.0, PASS, "a loss of 5 points is ruled out"),
        (0.1, 5.0, PASS, "a loss of 5 points is ruled out"),
        (-5.0, 3.0, UNDECIDED, "too few episodes to tell"),
        (-20.0, 0.0, UNDECIDED, "too few episodes to tell"),
    ],
)
def test_the_outcome_follows_the_interval(
    result: dict[str, Any], low: float, high: float, outcome: str, headline: str
) -> None:
    found = judged(result["comparisons"][0], low, high)
    assert (found.outcome, found.headline) == (outcome, headline)
    assert f"[{low:+.1f}".replace("-", "\N{MINUS SIGN}") in found.reason


def test_an_undecided_verdict_says_how_many_pairs_settle_it(result: dict[str, Any]) -> None:
    comparison = copy.deepcopy(result["comparisons"][1])
    comparison["paired"].update(only_baseline=20, only_candidate=20, n=400, low=-8.0, high=8.0)
    # (1.96 + 1.28)^2 x 0.1 / 0.05^2 = 420 pairs at 10 % discordant ones.
    assert "about 420 pairs" in verdict(Comparison.from_json(comparison)).reason
    comparison["paired"].update(only_baseline=0, only_candidate=0)
    assert "pairs settle" not in verdict(Comparison.from_json(comparison)).reason


def gated(gate: Gate, comparison: dict[str, Any]) -> dict[str, Any]:
    comparison.pop("gate", None)
    return gate.verdict(Comparison.from_json(comparison)).to_json()


def test_a_gate_decides_alone(result: dict[str, Any], tmp_path: Path) -> None:
    comparison = result["comparisons"][0]
    comparison["paired"].update(low=-20.0, high=-6.0)
    comparison["gate"] = gated(Gate(margin=0.3), comparison)
    assert verdict(Comparison.from_json(comparison)).outcome == PASS
    comparison["gate"] = gated(Gate(margin=0.3, drift=0.001), comparison)
    found = verdict(Comparison.from_json(comparison))
    assert (found.outcome, found.headline) == (FAIL, "1 of 2 limits of the gate not kept")
    page = write_report(typed(result), tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<b>kept</b> margin: success" in page
    assert "<b>not kept</b> drift: median drift" in page
    assert "allowed: 0.001 mm" in page


@pytest.mark.parametrize(
    ("found", "outcome", "headline"),
    [
        ("non-inferior", PASS, "a loss of 7.5 points is ruled out"),
        ("inferior", FAIL, "more than 7.5 points are lost"),
        ("undecided", UNDECIDED, "too few episodes to tell"),
    ],
)
def test_after_an_early_stop_its_own_interval_decides(
    result: dict[str, Any], tmp_path: Path, found: str, outcome: str, headline: str
) -> None:
    comparison = result["comparisons"][0]
    about = {"margin": 0.075, "pairs": 40, "planned": 400, "low": -12.0, "high": 3.0}
    comparison["stopping"] = {"verdict": found, **about}
    judgement = verdict(Comparison.from_json(comparison))
    assert (judgement.outcome, judgement.headline) == (outcome, headline)
    page = write_report(typed(result), tmp_path / "report.html").read_text(encoding="utf-8")
    assert "40 of 400 planned pairs" in page
    assert "[\N{MINUS SIGN}12.0, +3.0]" in page


def test_the_outcome_is_a_word_and_a_shape(result: dict[str, Any], tmp_path: Path) -> None:
    symbols = set()
    for low, high, word in ((-20.0, -6.0, "Fail"), (-1.0, 1.0, "Pass"), (-20.0, 9.0, "Undecided")):
        for comparison in result["comparisons"]:
            comparison["paired"].update(low=low, high=high, difference=(low + high) / 2)
        page = write_report(typed(result), tmp_path / "report.html").read_text(encoding="utf-8")
        card = page[page.index('<article class="verdict') : page.index("</h2>")]
        assert f"<b>{word}</b>" in card
        symbols.add(
            card[card.index("<path") if "<circle" not in card else card.index("<circle") : card.index("</svg>")]
        )
    assert len(symbols) == 3


def test_the_first_numbers_are_those_of_the_result(
    result: dict[str, Any], benchmark: dict[str, Any], tmp_path: Path
) -> None:
    page = write_report(typed(result), tmp_path / "report.html").read_text(encoding="utf-8")
    tiles = page[page.index('<dl class="tiles">') : page.index("</dl>")]
    rate = result["policies"][1]["success_rate"]
    for shown in (f"{100 * rate:.1f} %", "0.21 ×", "17.0 MiB", "not measured"):
        assert shown in tiles
    page = write_report(typed(result), tmp_path / "report.html", benchmark=benchmark).read_text(encoding="utf-8")
    tiles = page[page.index('<dl class="tiles">') : page.index("</dl>")]
    assert "1.10 ×" in tiles
    assert "of openvino-float32" in tiles
