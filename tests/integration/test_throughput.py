"""`benchmarks/throughput.py`: rates and ratios of workers that take known times, and the page of them."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from daptq.action_space import END_EFFECTOR_DELTA
from daptq.closed_loop.episodes import schedule_episodes
from daptq.errors import InvalidInputError
from tests.closed_loop.point_world import Pusher
from tests.integration.test_evaluation_scripts import load


class Clock:
    """Time that passes when somebody works."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class SlowWorkers:
    """Does every episode in so many seconds; a call that several share costs as much as one episode."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self.clock, self.seconds = clock, seconds

    def run(self, jobs: list[Any]) -> Iterator[int]:
        for job in jobs:
            self.clock.now += self.seconds
            yield from range(len(job))


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = load("benchmarks/throughput.py")
    monkeypatch.setattr(module, "time", Clock())
    return module


def test_rates_and_ratios(script: ModuleType) -> None:
    workers = {"one": SlowWorkers(script.time, 6.0), "two": SlowWorkers(script.time, 3.0)}
    scheduled = schedule_episodes(("a", "b"), episodes=8, seed=0)
    rates = script.measure(workers, scheduled, [1, 4], 3)
    assert rates == {
        ("one", 1): pytest.approx([10.0] * 3),
        ("two", 1): pytest.approx([20.0] * 3),
        ("one", 4): pytest.approx([40.0] * 3),
        ("two", 4): pytest.approx([80.0] * 3),
    }
    found = script.summarised(rates)
    assert [one["ratio"]["median"] for one in found] == pytest.approx([1.0, 2.0, 4.0, 8.0])
    rates["two", 1][:] = [10.0, 20.0, 40.0]
    again = script.summarised(rates)[1]["ratio"]
    assert again == {"n": 3, "median": pytest.approx(2.0), "least": pytest.approx(1.0), "most": pytest.approx(4.0)}


def test_the_page_states_what_was_measured(script: ModuleType) -> None:
    spread = {"n": 3, "median": 12.5, "least": 10.0, "most": 15.0}
    result = {
        "policy": "p",
        "environment": "e",
        "episodes": 8,
        "load": 9.5,
        "arrangements": [{"name": "one process", "batch": 1, "per_minute": spread, "ratio": spread}],
        "provenance": {"time": "2026-01-02T03:04:05+00:00", "cpu": "a processor", "cpu_count": 2},
    }
    page = script.page(result, "stem")
    assert "| one process | 1 | 12.50 [10.00, 15.00] | 12.50 [10.00, 15.00] |" in page
    assert "n = 3 rounds of 8 episodes" in page
    assert "2 CPUs, load 9.5" in page


def test_too_few_episodes_for_two_workers_are_refused(script: ModuleType) -> None:
    with pytest.raises(InvalidInputError, match="episodes must be at least 8, a call for each of two workers, got 4"):
        script.main(["--episodes", "4", "--batches", "1", "4"])


def test_a_policy_of_other_actions_is_refused(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = Pusher()
    policy.action_space = END_EFFECTOR_DELTA[:6]
    monkeypatch.setattr(script, "open_policy", lambda source: policy)
    with pytest.raises(InvalidInputError, match=r"actions of policy p must be those of environment tabletop, .* got 3"):
        script.main(["--policy", "p"])
