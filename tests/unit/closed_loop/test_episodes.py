"""Which episodes are run."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daptq.closed_loop.episodes import schedule_episodes
from daptq.errors import InvalidInputError

TASKS = ("a", "b", "c")


@given(
    tasks=st.integers(1, 6),
    extra=st.integers(0, 40),
    places=st.integers(1, 12),
    fraction=st.floats(0, 1),
    seed=st.integers(0, 10_000),
)
def test_tasks_and_states_are_spread_evenly(tasks: int, extra: int, places: int, fraction: float, seed: int) -> None:
    episodes, steps = tasks + extra, range(0, 4 * places, 4)
    states = int(fraction * episodes * places)
    names = [f"task-{index}" for index in range(tasks)]
    plan = schedule_episodes(names, episodes=episodes, seed=seed, drift_states=states, possible_steps=steps)
    per_task = Counter(episode.task for episode in plan)
    assert sum(per_task.values()) == episodes
    assert max(per_task.values()) - min(per_task.values()) <= 1
    counts = [len(episode.branch_steps) for episode in plan]
    assert sum(counts) == states
    assert max(counts) - min(counts) <= 1
    for episode in plan:
        assert list(episode.branch_steps) == sorted(set(episode.branch_steps))
        assert set(episode.branch_steps) <= set(steps)


@pytest.mark.parametrize("own", [False, True])
def test_a_shorter_run_is_the_start_of_a_longer_one(own: bool) -> None:
    settings: dict[str, Any] = {"seed": 4, "seeds_per_task": own, "possible_steps": range(0, 44, 4)}
    long = schedule_episodes(TASKS, episodes=30, drift_states=60, **settings)
    short = schedule_episodes(TASKS, episodes=10, drift_states=20, **settings)
    assert long[:10] == short


def test_seeds_are_dealt_in_turn_unless_they_choose_initial_states() -> None:
    plan = schedule_episodes(TASKS, episodes=6, seed=0)
    assert [(one.task, one.seed - 10_000_000) for one in plan] == list(zip("abcabc", range(6), strict=True))


@given(
    tasks=st.integers(1, 6),
    extra=st.integers(0, 300),
    states=st.lists(st.integers(1, 70), min_size=6, max_size=6),
    seed=st.integers(0, 10_000),
)
def test_every_task_meets_its_initial_states_equally_often(
    tasks: int, extra: int, states: list[int], seed: int
) -> None:
    names = [f"task-{index}" for index in range(tasks)]
    plan = schedule_episodes(names, episodes=tasks + extra, seed=seed, seeds_per_task=True)
    for name, count in zip(names, states, strict=False):
        own = [episode.seed for episode in plan if episode.task == name]
        met = Counter(one % count for one in own)
        times = [met[row] for row in range(count)]
        assert max(times) - min(times) <= 1
        alone = schedule_episodes([name], episodes=len(own), seed=seed)
        assert own == [episode.seed for episode in alone]


def test_seeds_dealt_in_turn_would_leave_initial_states_out() -> None:
    names = [f"task-{index}" for index in range(4)]
    met = {one.seed % 24 for one in schedule_episodes(names, episodes=96, seed=0) if one.task == "task-0"}
    assert len(met) == 6


def test_more_states_keep_those_of_fewer() -> None:
    few = schedule_episodes(TASKS, episodes=10, seed=4, drift_states=10, possible_steps=range(0, 44, 4))
    many = schedule_episodes(TASKS, episodes=10, seed=4, drift_states=35, possible_steps=range(0, 44, 4))
    assert all(set(one.branch_steps) <= set(other.branch_steps) for one, other in zip(few, many, strict=True))


def test_no_seed_is_one_of_training_or_of_another_run() -> None:
    seeds = [episode.seed for seed in (0, 1, 2) for episode in schedule_episodes(TASKS, episodes=500, seed=seed)]
    assert len(set(seeds)) == 1500
    assert min(seeds) == 10_000_000  # demonstrations stay below 1 000 000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"episodes": 2}, r"episodes must be between 3 \(one per task\)"),
        ({"episodes": 1_000_001}, "and 1000000, got 1000001"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"drift_states": 21}, r"between 0 and 20 \(2 per episode\), got 21"),
        ({"drift_states": -1}, "drift_states must be"),
    ],
)
def test_impossible_plans_are_refused(change: dict[str, int], message: str) -> None:
    settings: dict[str, Any] = {"episodes": 10, "seed": 0, "drift_states": 0, **change}
    with pytest.raises(InvalidInputError, match=message):
        schedule_episodes(TASKS, possible_steps=(0, 4), **settings)


def test_no_task_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="episodes must be between 1"):
        schedule_episodes((), episodes=0, seed=0)
