"""Variants of the point world, where the wind decides which episodes a policy loses."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from daptq.errors import InvalidInputError, UnknownNameError
from daptq.evaluation.result import EvaluationResult
from daptq.report.table import variant_rows, variant_table
from daptq.statistics.paired_proportions import gap_interval
from tests.closed_loop.json_results import evaluated
from tests.integration.test_evaluation_scripts import load

pytestmark = pytest.mark.usefixtures("point_world")
SETTINGS: dict[str, Any] = {"environment": "point", "episodes": 6, "seed": 1}

Make = Callable[..., Any]


@pytest.fixture
def result(make_pusher: Make) -> dict[str, Any]:
    """A candidate that walks 4 mm a step less to the left: it arrives at 7 mm a step, and does not at 3 mm a step."""
    candidate, baseline = make_pusher("slow", error=-0.004), make_pusher("whole")
    return evaluated([candidate], variants=["gust", "breeze"], against=baseline, **SETTINGS)


def test_the_gap_is_the_difference_of_differences(result: dict[str, Any]) -> None:
    gust, breeze = result["variants"]
    assert (gust["variant"], breeze["variant"]) == ("gust", "breeze")
    assert result["paired"]["difference"] == 0.0
    assert gust["comparisons"][0]["paired"]["only_baseline_episodes"] == [0, 2, 4]
    assert [gap["robustness_gap"][0]["value"] for gap in (gust, breeze)] == [-50.0, 0.0]
    low, high = gap_interval(np.array([-1, 0] * 3), np.zeros(6, dtype=np.int64))
    (gap,) = gust["robustness_gap"]
    assert (gap["low"], gap["high"], gap["n"], gap["variants"]) == (100 * low, 100 * high, 6, 1)
    (pooled,) = result["robustness_gap"]
    # An episode's two variants are a cluster: means of -1/2 and 0 in turn, Student's t with 5 degrees of freedom.
    means = 100.0 * np.array([-0.5, 0.0] * 3)
    half = float(stats.t.ppf(0.975, 5) * stats.sem(means))
    assert pooled["value"] == -25.0
    assert (pooled["low"], pooled["high"]) == pytest.approx((-25.0 - half, -25.0 + half), abs=1e-9)
    assert (pooled["n"], pooled["variants"], pooled["against"]) == (6, 2, "whole")


def test_the_nominal_part_is_the_evaluation_without_variants(result: dict[str, Any], make_pusher: Make) -> None:
    plain = evaluated([make_pusher("slow", error=-0.004)], against=make_pusher("whole"), **SETTINGS)
    for key in plain.keys() - {"provenance"}:
        assert result[key] == plain[key]
    assert json.loads(json.dumps(result)) == result


def test_all_means_every_variant(make_pusher: Make) -> None:
    result = evaluated([make_pusher()], variants=["all"], **SETTINGS)
    assert [entry["variant"] for entry in result["variants"]] == ["gust", "breeze", "offset"]


def test_every_condition_meets_the_same_starts(make_pusher: Make, world: Any) -> None:
    world.resets.clear()
    evaluated([make_pusher()], variants=["breeze", "gust", "breeze"], **SETTINGS)
    thirds = [world.resets[:6], world.resets[6:12], world.resets[12:]]
    assert thirds[0] == thirds[1] == thirds[2]


def test_without_a_baseline_there_is_success_and_no_gap(make_pusher: Make) -> None:
    result = evaluated([make_pusher("slow", error=-0.004)], variants=["gust"], **SETTINGS)
    assert result["robustness_gap"] == result["variants"][0]["robustness_gap"] == []
    assert [p["success_rate"] for p in (result["policies"][0], result["variants"][0]["policies"][0])] == [1.0, 0.5]
    assert len(variant_rows(EvaluationResult.from_json(result))[1]) == 2


def test_a_policy_against_itself_has_a_gap_of_zero_and_an_interval(make_pusher: Make) -> None:
    result = evaluated([make_pusher()], variants=["gust"], against=make_pusher(), **SETTINGS)
    (gap,) = result["variants"][0]["robustness_gap"]
    assert gap["value"] == 0.0
    assert gap["low"] < -20 < 20 < gap["high"]


def test_a_killed_run_continues_on_every_condition(make_pusher: Make, tmp_path: Path, world: Any) -> None:
    def run(journal: Path | None, stop_after: int | None = None) -> dict[str, Any]:
        done: list[str] = []

        def progress(_: int, __: int, what: str) -> None:
            done.append(what)
            if len(done) == stop_after:
                raise KeyboardInterrupt

        settings: dict[str, Any] = {"variants": ["gust", "breeze"], "against": make_pusher("whole"), **SETTINGS}
        candidates = [make_pusher("slow", error=-0.004)]
        return evaluated(candidates, journal=journal, progress=progress, **settings)

    whole = run(None)
    journal = tmp_path / "result.episodes"
    # 24 episodes and branches in the nominal scene, 12 episodes on each variant: killed in every condition once.
    for stop in (5, 20 + 9, 3 + 4):
        with pytest.raises(KeyboardInterrupt):
            run(journal, stop_after=stop)
    again = run(journal)
    assert {**whole, "provenance": None} == {**again, "provenance": None}
    assert sorted(file.name for file in journal.iterdir()) == ["breeze.jsonl", "gust.jsonl", "nominal.jsonl"]
    assert list(tmp_path.iterdir()) == [journal]
    world.resets.clear()
    assert {**run(journal), "provenance": None} == {**whole, "provenance": None}
    assert world.resets == []


def test_the_table_has_a_row_per_condition(result: dict[str, Any]) -> None:
    header, rows = variant_rows(EvaluationResult.from_json(result))
    assert header == ("condition", "whole", "slow", "gap of slow [points, 95 %]")
    assert [row[0] for row in rows] == ["nominal", "gust", "breeze", "all variants"]
    assert rows[0][3] == "-"
    assert rows[1][3].startswith("-50.0 [")
    assert rows[3][1:3] == ("100.0 %", "75.0 %")
    output = io.StringIO()
    Console(file=output, width=140).print(variant_table(EvaluationResult.from_json(result)))
    for cell in (*header, *(cell for row in rows for cell in row)):
        assert cell in output.getvalue()


def test_bad_variants_are_refused(make_pusher: Make) -> None:
    for asked in (["gale"], ["gust", "gale"]):
        with pytest.raises(UnknownNameError, match="variant must be one of"):
            evaluated([make_pusher()], variants=asked, **SETTINGS)
    with pytest.raises(UnknownNameError, match="variant must be one of"):
        evaluated([make_pusher()], variant="gale", **SETTINGS)
    with pytest.raises(InvalidInputError, match="at least 2"):
        evaluated([make_pusher()], variants=["gust"], **{**SETTINGS, "episodes": 1, "tasks": ["left"]})


def test_the_page_of_the_benchmark_holds_table_and_gaps(
    result: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    typed = EvaluationResult.from_json(result)
    benchmark = load("benchmarks/robustness.py")
    assert "layers" not in json.dumps(benchmark.shortened(result))
    text = benchmark.page(typed, "page")
    for row in variant_rows(typed)[1]:
        assert f"| {' | '.join(row)} |" in text
    assert "- slow: -25.0 [" in text
    assert "| gust | wind of 4 mm a step to the right |" in text
