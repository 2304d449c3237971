"""Paired evaluation in the point world, where the outcome of every episode follows from the policy's error."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from daptq.errors import DaptqError, InvalidInputError, UnknownNameError
from daptq.observations import CameraSize, camera_key
from daptq.statistics.paired_proportions import mcnemar_exact, paired_difference_interval
from daptq.statistics.proportion import wilson_interval
from daptq.statistics.sequential import anytime_interval
from tests.closed_loop.json_results import evaluate_json, evaluated
from tests.closed_loop.point_world import PointWorld

pytestmark = pytest.mark.usefixtures("point_world")
SETTINGS: dict[str, Any] = {"environment": "point", "episodes": 6, "seed": 1}


def test_against_itself_everything_is_exactly_zero(make_pusher: Callable[..., Any]) -> None:
    result = evaluate_json(make_pusher(noise=0.003), against=make_pusher(noise=0.003), drift_states=9, **SETTINGS)
    paired, drift = result["paired"], result["drift"]
    assert (paired["difference"], paired["only_candidate"], paired["only_baseline"]) == (0.0, 0, 0)
    assert paired["mcnemar_p"] == 1.0
    assert drift["identical_states"]["n"] == 9
    estimates = [drift["whole_episode"][unit][name] for unit in UNITS for name in ("rms", "median_of_episodes")]
    for entry in drift["identical_states"]["after_steps"]:
        estimates += [entry[unit][name] for unit in UNITS for name in ("median", "mean", "rms")]
    assert estimates == [{"value": 0.0, "low": 0.0, "high": 0.0}] * (4 + 6 * 6)


UNITS = ("position_mm", "rotation_deg")


def test_another_policy_is_told_apart(make_pusher: Callable[..., Any]) -> None:
    # An error of -10 mm a step cancels the walk to the left and doubles the one to the right.
    result = evaluate_json(make_pusher(error=-0.01), against=make_pusher(), **SETTINGS)
    paired = result["paired"]
    assert (paired["only_baseline"], paired["only_candidate"], paired["both"]) == (3, 0, 3)
    assert paired["only_baseline_episodes"] == [0, 2, 4]
    assert paired["difference"] == -50.0
    low, high = paired_difference_interval(0, 3, 6)
    assert (paired["low"], paired["high"]) == (100 * low, 100 * high)
    assert paired["mcnemar_p"] == mcnemar_exact(3, 0)
    after = result["drift"]["identical_states"]["after_steps"]
    assert [entry["steps"] for entry in after] == [1, 2, 4, 8, 16, 32]
    for entry in after:
        assert entry["position_mm"]["mean"]["value"] == pytest.approx(10.0 * entry["steps"], rel=1e-5)


def test_the_result_names_rates_per_task_with_intervals(make_pusher: Callable[..., Any]) -> None:
    result = evaluate_json(make_pusher("bent", error=-0.01), against=make_pusher("straight"), **SETTINGS)
    baseline, candidate = result["policies"]
    assert (baseline["name"], baseline["role"]) == ("straight", "baseline")
    assert (candidate["name"], candidate["role"]) == ("bent", "candidate")
    low, high = wilson_interval(3, 6)
    assert [candidate[name] for name in ("successes", "n", "success_rate", "low", "high")] == [3, 6, 0.5, low, high]
    assert candidate["per_task"]["left"]["success_rate"] == 0.0
    assert candidate["per_task"]["right"]["at_last_step"]["success_rate"] == 1.0
    assert (candidate["per_task"]["right"]["n"], candidate["other_task"]["successes"]) == (3, 0)
    assert candidate["layers"][0]["role"] == "action_head"
    wanted = {"schema_version", "environment", "episodes", "seed", "policies", "paired", "drift", "provenance"}
    assert wanted <= set(result)
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_one_baseline_run_serves_every_candidate(make_pusher: Callable[..., Any]) -> None:
    baseline = make_pusher()
    candidates = {"a": make_pusher(error=0.001), "b": make_pusher(error=-0.01), "c": make_pusher()}
    result = evaluated(candidates, against=baseline, drift_states=6, **SETTINGS)
    # 6 chunks in each of 6 episodes and 8 in each of 6 branches, whatever the number of candidates; one to describe it.
    assert len(baseline.predictions) == 6 * 6 + 6 * 8 + 1
    assert [one["policy"] for one in result["comparisons"]] == ["a", "b", "c"]
    assert result["paired"] == result["comparisons"][0]["paired"]
    assert [one["paired"]["difference"] for one in result["comparisons"]] == [0.0, -50.0, 0.0]
    alone = evaluate_json(make_pusher(error=-0.01), against=make_pusher(), drift_states=6, **SETTINGS)
    assert result["comparisons"][1]["paired"] == alone["paired"]
    assert result["comparisons"][1]["drift"] == alone["drift"]


def test_without_a_baseline_there_are_rates_only(make_pusher: Callable[..., Any]) -> None:
    policy = make_pusher()
    result = evaluate_json(policy, **SETTINGS)
    assert (result["paired"], result["drift"], result["comparisons"]) == (None, None, [])
    assert result["policies"][0]["success_rate"] == 1.0
    assert len(policy.predictions) == 36 + 1  # no branches; one to describe it


def test_the_seed_decides_the_episodes(make_pusher: Callable[..., Any], point_world: list[Any]) -> None:
    def resets(seed: int) -> list[tuple[str, int]]:
        del point_world[:]
        evaluate_json(make_pusher(), environment="point", episodes=4, seed=seed)
        recorded = list(type(point_world[0]).resets)
        type(point_world[0]).resets.clear()
        return recorded

    resets(0)
    assert resets(0) == resets(0)
    assert not {seed for _, seed in resets(0)} & {seed for _, seed in resets(1)}
    assert [task for task, _ in resets(0)] == ["left", "right", "left", "right"]


def test_where_seeds_choose_initial_states_every_task_counts_its_own(
    make_pusher: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = {**SETTINGS, "journal": tmp_path / "episodes.jsonl"}
    evaluate_json(make_pusher(), **settings)
    PointWorld.resets.clear()
    monkeypatch.setattr(PointWorld, "initial_states_of", lambda *_: 3)
    with pytest.raises(InvalidInputError, match="must belong to the same evaluation"):
        evaluate_json(make_pusher(), **settings)
    evaluate_json(make_pusher(), **SETTINGS)
    first = 10_000_000 + 1_000_000
    assert PointWorld.resets == [(task, first + k) for k in range(3) for task in ("left", "right")]


def test_progress_counts_to_the_total(make_pusher: Callable[..., Any]) -> None:
    seen: list[tuple[int, int, str]] = []
    evaluate_json(
        make_pusher("q"),
        against=make_pusher(),
        drift_states=2,
        progress=lambda done, total, what: seen.append((done, total, what)),
        **SETTINGS,
    )
    assert [done for done, _, _ in seen] == list(range(1, 17))
    assert {total for _, total, _ in seen} == {2 * 6 + 2 * 2}
    assert seen[0][2] == "pusher: episode 0"


def test_a_killed_run_continues_to_the_identical_result(make_pusher: Callable[..., Any], tmp_path: Path) -> None:
    def run(journal: Path | None, stop_after: int | None = None) -> tuple[dict[str, Any], list[int]]:
        done: list[int] = []

        def progress(count: int, total: int, what: str) -> None:
            done.append(count)
            if len(done) == stop_after:
                raise KeyboardInterrupt

        policies = make_pusher("q", error=-0.01, noise=0.01), make_pusher(noise=0.01)
        result = evaluate_json(policies[0], against=policies[1], progress=progress, journal=journal, **SETTINGS)
        return result, done

    complete, _ = run(None)
    journal = tmp_path / "runs" / "episodes.jsonl"
    for stop in (4, 5):
        with pytest.raises(KeyboardInterrupt):
            run(journal, stop_after=stop)
    with journal.open("a") as file:
        file.write('{"episode": {"policy": "q", "ind')  # killed while writing
    resumed, done = run(journal)
    assert done[0] == 4 + 5 + 1
    del complete["provenance"], resumed["provenance"]
    assert resumed == complete
    again, done = run(journal)
    assert done == []
    del again["provenance"]
    assert again == complete


@pytest.mark.parametrize(("error", "margin", "verdict"), [(0.0, 0.3, "non-inferior"), (-0.01, 0.1, "inferior")])
def test_a_clear_case_ends_early(
    make_pusher: Callable[..., Any], tmp_path: Path, error: float, margin: float, verdict: str
) -> None:
    settings: dict[str, Any] = {**SETTINGS, "episodes": 80, "drift_states": 80}
    candidate = make_pusher("q", error=error)
    seen: list[tuple[int, int]] = []
    result = evaluate_json(
        candidate,
        against=make_pusher(),
        stop_margin=margin,
        journal=tmp_path / "e.jsonl",
        progress=lambda done, total, _: seen.append((done, total)),
        **settings,
    )
    (comparison,) = result["comparisons"]
    stopping, pairs = comparison["stopping"], result["episodes"]
    assert (stopping["verdict"], stopping["pairs"], stopping["planned"]) == (verdict, pairs, 80)
    assert pairs in (20, 40)
    assert seen[0] == (1, 4 * 80)  # at most: two policies, an episode and a branch for each pair
    assert seen[-1] == (4 * pairs, 4 * pairs)
    # What is reported is what the first pairs say, and branches start in those alone.
    assert (comparison["paired"]["n"], result["policies"][1]["n"]) == (pairs, pairs)
    assert comparison["drift"]["identical_states"]["n"] == pairs
    low, high = anytime_interval(comparison["paired"]["only_candidate"], comparison["paired"]["only_baseline"], pairs)
    assert (stopping["low"], stopping["high"]) == (100 * low, 100 * high)
    assert low > -margin if verdict == "non-inferior" else high < -margin
    # The looks already taken are not taken again, whatever is asked now.
    again = evaluate_json(
        candidate, against=make_pusher(), stop_margin=margin, journal=tmp_path / "e.jsonl", **settings
    )
    assert {**again, "provenance": None} == {**result, "provenance": None}


def test_stopping_early_needs_a_baseline_and_whole_rounds(make_pusher: Callable[..., Any]) -> None:
    with pytest.raises(InvalidInputError, match="stop_margin must come with a baseline"):
        evaluate_json(make_pusher(), stop_margin=0.1, **SETTINGS)
    with pytest.raises(InvalidInputError, match="multiple of the number of tasks, 2, got 7"):
        evaluate_json(make_pusher(), against=make_pusher(), stop_margin=0.1, **{**SETTINGS, "episodes": 7})


def test_workers_that_cannot_be_started_leave_no_file(make_pusher: Callable[..., Any], tmp_path: Path) -> None:
    journal = tmp_path / "episodes.jsonl"
    with pytest.raises(InvalidInputError, match="ray must be the address of a Ray cluster"):
        evaluate_json(make_pusher(), ray="127.0.0.1:1", journal=journal, **SETTINGS)
    assert not journal.exists()


def test_a_journal_of_other_policies_is_refused(make_pusher: Callable[..., Any], tmp_path: Path) -> None:
    journal = tmp_path / "episodes.jsonl"
    evaluate_json(make_pusher(), journal=journal, **SETTINGS)
    with pytest.raises(InvalidInputError, match="same evaluation"):
        evaluate_json(make_pusher(), journal=journal, **{**SETTINGS, "seed": 2})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"episodes": 0}, "episodes must be between 2"),
        ({"episodes": 1}, "one per task"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"workers": 0}, "workers must be at least 1"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"drift_states": -1}, "drift_states must be between 0"),
        ({"drift_states": 1000}, "between 0 and 18"),
        ({"tasks": []}, "at least one task"),
    ],
)
def test_bad_numbers_are_refused_before_any_episode(
    make_pusher: Callable[..., Any], change: dict[str, Any], message: str
) -> None:
    policy = make_pusher()
    with pytest.raises(InvalidInputError, match=message):
        evaluate_json(policy, against=make_pusher("other"), **{**SETTINGS, **change})
    assert policy.predictions == []


def test_unknown_names_come_with_near_ones(make_pusher: Callable[..., Any]) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'right'"):
        evaluate_json(make_pusher(), tasks=["rihgt"], **SETTINGS)
    with pytest.raises(UnknownNameError, match="Did you mean 'tabletop'"):
        evaluate_json(make_pusher(), environment="table-top", episodes=4)


def test_a_failing_episode_is_named(make_pusher: Callable[..., Any], point_world: list[Any]) -> None:
    with pytest.raises(DaptqError, match=r"episode 0 \(left\) of broken must run to its end, got ValueError") as caught:
        evaluate_json(make_pusher("broken", error=float("nan")), against=make_pusher(), **SETTINGS)
    assert isinstance(caught.value.__cause__, ValueError)
    assert all(world.closed for world in point_world)


def test_policies_with_equal_names_stay_apart(make_pusher: Callable[..., Any]) -> None:
    result = evaluated([make_pusher("p"), make_pusher("p")], against=make_pusher("p"), **SETTINGS)
    assert [policy["name"] for policy in result["policies"]] == ["p", "p (2)", "p (3)"]


def test_policies_that_need_different_pictures_are_refused(make_pusher: Callable[..., Any]) -> None:
    first, second = make_pusher("first"), make_pusher("second")
    front = camera_key("front")
    first.cameras, second.cameras = {front: CameraSize(64, 64)}, {front: CameraSize(64, 96)}
    with pytest.raises(
        InvalidInputError,
        match=r"'observation.images.front' must have one size, got \(64, 64\) and \(64, 96\) \(second\)",
    ):
        evaluate_json(second, against=first, **SETTINGS)


def test_episodes_that_share_a_call_give_the_same_result(make_pusher: Callable[..., Any], tmp_path: Path) -> None:
    def run(batch: int, journal: Path | None = None) -> dict[str, Any]:
        baseline, candidate = make_pusher("straight", noise=0.003), make_pusher("bent", noise=0.003, error=-0.004)
        return evaluate_json(candidate, against=baseline, drift_states=7, batch=batch, journal=journal, **SETTINGS)

    alone, together = run(1), run(4, tmp_path / "episodes.jsonl")
    for key in ("policies", "comparisons"):
        assert alone[key] == together[key]
    # Half of a group is run again with the whole of it: who shares a call does not depend on the kill.
    lines = (tmp_path / "episodes.jsonl").read_text().splitlines()
    (tmp_path / "killed.jsonl").write_text("\n".join(lines[:6]) + "\n")
    assert run(4, tmp_path / "killed.jsonl")["comparisons"] == together["comparisons"]
