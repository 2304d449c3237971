"""Counts and rates out of records."""

from __future__ import annotations

import numpy as np
import pytest

from daptq.closed_loop.rollout import EpisodeRecord, Motion
from daptq.metrics.pairs import paired_summary
from daptq.metrics.success import success_summary
from daptq.statistics.clustered import clustered_difference_interval
from daptq.statistics.paired_proportions import mcnemar_exact, paired_difference_interval
from daptq.statistics.proportion import wilson_interval


def records(outcomes: str, *, policy: str = "p") -> list[EpisodeRecord]:
    """One record per letter, tasks "a" and "b" in turn: `.` never, `x` on the way, `#` to the end, `o` another task."""
    motion = Motion(positions=np.zeros((1, 3)), rotations=np.eye(3)[None])
    return [
        EpisodeRecord(
            policy=policy,
            index=index,
            task="ab"[index % 2],
            seed=index,
            success_any_step=letter in "x#",
            success_last_step=letter == "#",
            first_success=1 if letter in "x#" else None,
            other_tasks=("c",) if letter == "o" else (),
            gripper_flips=2,
            held=(None,) * 1,
            motion=motion,
        )
        for index, letter in enumerate(outcomes)
    ]


def test_success_by_rule_and_task() -> None:
    summary = success_summary(records("##x.#o")).to_json()
    low, high = wilson_interval(4, 6)
    assert [summary[name] for name in ("n", "successes", "success_rate", "low", "high")] == [6, 4, 4 / 6, low, high]
    assert summary["at_last_step"]["successes"] == 3
    assert summary["other_task"]["successes"] == 1
    assert summary["per_task"]["a"]["successes"] == 3
    assert summary["per_task"]["a"]["at_last_step"]["successes"] == 2
    assert (summary["per_task"]["b"]["successes"], summary["per_task"]["b"]["n"]) == (1, 3)


def test_pairs_are_counted_each_way() -> None:
    paired = paired_summary(records("##..x#.#"), records("#x#.x...")).to_json()
    # any step: baseline 1 1 0 0 1 1 0 1, candidate 1 1 1 0 1 0 0 0
    counts = {name: paired[name] for name in ("n", "both", "neither", "only_candidate", "only_baseline")}
    assert counts == {"n": 8, "both": 3, "neither": 2, "only_candidate": 1, "only_baseline": 2}
    assert (paired["only_candidate_episodes"], paired["only_baseline_episodes"]) == ([2], [5, 7])
    assert paired["discordant"] == [
        {"index": 2, "task": "a", "seed": 2, "succeeds": "candidate", "first_success": 1},
        {"index": 5, "task": "b", "seed": 5, "succeeds": "baseline", "first_success": 1},
        {"index": 7, "task": "b", "seed": 7, "succeeds": "baseline", "first_success": 1},
    ]
    assert paired["difference"] == -12.5
    assert (paired["low"], paired["high"]) == pytest.approx([100 * end for end in paired_difference_interval(1, 2, 8)])
    assert paired["mcnemar_p"] == mcnemar_exact(1, 2)
    # last step: baseline 1 1 0 0 0 1 0 1, candidate 1 0 1 0 0 0 0 0
    last = paired["at_last_step"]
    assert (last["both"], last["only_candidate"], last["only_baseline"], last["difference"]) == (1, 1, 3, -25.0)


def test_the_interval_clustered_by_task_is_the_wider_one() -> None:
    # Task a is lost in 10 of 20 pairs, task b never: the tasks differ, so the clustered interval is wider.
    baseline, candidate = records("##" * 20), records("##.#" * 10)
    paired = paired_summary(baseline, candidate).to_json()
    differences = np.resize([0.0, 0.0, -1.0, 0.0], 40)
    low, _ = clustered_difference_interval(differences, np.resize([0, 1], 40))
    assert paired["clustered_by_task"] == {"tasks": 2, "low": max(100 * low, -100.0), "high": 100.0}
    assert paired["clustered_by_task"]["low"] < paired["low"]
    # Both tasks lose alike: no spread between them, but the pairs still are few.
    alike = paired_summary(records("##" * 20), records("##..##" * 6 + "####")).to_json()
    assert alike["clustered_by_task"] == {"tasks": 2, "low": alike["low"], "high": alike["high"]}
    assert paired_summary(baseline[::2], candidate[::2]).clustered_by_task is None


def test_records_of_unequal_number_are_no_pairs() -> None:
    with pytest.raises(ValueError, match="shorter"):
        paired_summary(records("##"), records("#"))
