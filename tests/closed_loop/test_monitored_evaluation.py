"""A monitor within an evaluation of the point world: result, journal, workers and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from daptq.closed_loop.interface_stream import watch_episodes
from daptq.errors import InvalidInputError
from daptq.evaluation.request import Evaluation
from daptq.evaluation.result import EvaluationResult
from daptq.evaluation.watched_drive import drive, take_reference
from daptq.monitoring.interface_reference import InterfaceReference
from daptq.monitoring.monitor import InterfaceMonitor, MonitorConfig
from daptq.report.table import monitor_rows
from tests.closed_loop.json_results import evaluate_json, evaluated
from tests.closed_loop.point_world import PointWorld, Pusher, Reader

pytestmark = pytest.mark.usefixtures("point_world")

EVALUATION: dict[str, Any] = {"environment": "point", "episodes": 30, "seed": 1}


def test_an_evaluation_says_in_which_condition_and_when_a_shift_was_flagged(
    reader: Reader, reference: InterfaceReference
) -> None:
    conditions: dict[str, Any] = {"variants": ["offset", "breeze"], "monitor": reference}
    result = evaluated([reader], **conditions, **EVALUATION)
    offset, breeze = result["variants"]
    assert result["monitor"]["flagged_at"] is None
    assert breeze["monitor"]["flagged_at"] is None  # the wind moves the point, and the reading stays right
    flagged = offset["monitor"]["flagged_at"]
    assert 4 < flagged < 20
    assert [one["shifted"] for one in offset["monitor"]["episodes"]] == [False] * flagged + [True] * (30 - flagged)
    # P(a flag among the episodes that were planned | nothing changed) <= 5 %.
    assert offset["monitor"]["threshold"] == 30 / 0.05
    assert [name for name, _ in monitor_rows(EvaluationResult.from_json(result))] == ["nominal", "offset", "breeze"]
    assert [said.split(" (")[0] for _, said in monitor_rows(EvaluationResult.from_json(result))] == [
        "no shift in 30 episodes",
        f"shift flagged after {flagged + 1} of 30 episodes",
        "no shift in 30 episodes",
    ]


def test_an_evaluation_judges_as_the_monitor_on_the_robot_does(reader: Reader, reference: InterfaceReference) -> None:
    result = evaluate_json(reader, monitor=reference, **EVALUATION)
    monitor = InterfaceMonitor(reader, reference, MonitorConfig(horizon=30, seed=1))
    request = Evaluation(candidates=[reader], environment="point", episodes=30, seed=1)
    for _ in drive(request, reader, monitor.watch):
        pass
    for entry, assessment in zip(result["monitor"]["episodes"], monitor.assessments, strict=True):
        assert (entry["score"], entry["p_value"]) == (assessment.score, assessment.p_value)
    assert result["monitor"]["explanation"] == monitor.assessments[-1].explanation


def test_watching_leaves_the_rest_of_the_result_as_it_is(reader: Reader, reference: InterfaceReference) -> None:
    settings = {"against": reader, **EVALUATION}
    plain, watched = evaluate_json(reader, **settings), evaluate_json(reader, monitor=reference, batch=1, **settings)
    del watched["monitor"]
    assert {**plain, "provenance": None} == {**watched, "provenance": None}


def test_a_killed_run_judges_the_same_episodes(reader: Reader, reference: InterfaceReference, tmp_path: Path) -> None:
    def kill(done: int, *_: object) -> None:
        if done == 11:
            raise KeyboardInterrupt

    settings = {"monitor": reference, "journal": tmp_path / "episodes.jsonl", **EVALUATION}
    with pytest.raises(KeyboardInterrupt):
        evaluate_json(reader, progress=kill, **settings)
    with pytest.raises(InvalidInputError, match="must belong to the same evaluation"):
        evaluate_json(reader, **{**settings, "monitor": None})
    again = evaluate_json(reader, **settings)
    assert again["monitor"] == evaluate_json(reader, monitor=reference, **EVALUATION)["monitor"]


@pytest.mark.slow
def test_what_a_monitor_says_does_not_depend_on_the_number_of_workers(
    plugged_in: Path, reader: Reader, reference: InterfaceReference
) -> None:
    settings: dict[str, Any] = {"monitor": reference, "environment": "point", "episodes": 6, "seed": 1}
    assert evaluate_json(reader, workers=2, **settings)["monitor"] == evaluate_json(reader, **settings)["monitor"]


def test_a_task_that_the_reference_does_not_hold_is_refused_before_any_episode(
    reader: Reader, point_world: list[PointWorld], tmp_path: Path
) -> None:
    left = take_reference(reader, environment="point", tasks=["left"], episodes=8, seed=7)
    journal = tmp_path / "episodes.jsonl"
    with pytest.raises(InvalidInputError, match="instruction must be one of the reference, 'go left', got 'go right'"):
        evaluate_json(reader, against=Pusher(), monitor=left, journal=journal, **EVALUATION)
    assert not journal.exists()
    assert all(one.closed for one in point_world)
    assert len(evaluate_json(reader, monitor=left, tasks=["left"], **EVALUATION)["monitor"]["episodes"]) == 30


def test_episodes_of_different_lengths_are_watched_side_by_side(
    reader: Reader, reference: InterfaceReference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PointWorld, "horizon_of", lambda _, task: 24 if task == "right" else 12)
    driven = drive(
        Evaluation(candidates=[reader], environment="point", episodes=4, seed=3, batch=4),
        reader,
        lambda instructions: watch_episodes(reader, instructions),
    )
    ((records, streams),) = driven
    assert [record.index for record in records] == [0, 1, 2, 3]
    assert [(one.instruction, one.moments["consumer"].count) for one in streams] == [
        ("go left", 3),
        ("go right", 6),
    ] * 2
