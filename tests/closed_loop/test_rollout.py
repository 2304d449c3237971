"""One episode and one branch of a policy, against motion worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from daptq.closed_loop.episodes import Episode
from daptq.closed_loop.rollout import Branch, BranchRecord, run_branches, run_episode, run_episodes
from daptq.errors import InvalidInputError
from daptq.metrics.drift import branch_drift, episode_drift

EPISODE = Episode(index=3, task="left", seed=10_000_003, branch_steps=(0, 8))


def run_branch(world: Any, policy: Any, *, step: int, state: Any, steps: int) -> BranchRecord:
    (record,) = run_branches([world], policy, [Branch(episode=EPISODE, step=step, state=state)], steps=steps, label="p")
    return record


def test_an_episode_runs_to_the_horizon_and_records_every_pose(world: Any, make_pusher: Callable[..., Any]) -> None:
    record = run_episode(world, make_pusher(turn=0.1), EPISODE, label="p")
    start = np.random.default_rng(EPISODE.seed).uniform(-0.005, 0.005)
    # 10 mm by the policy and 1 mm by the world per step; float32 actions round at 1e-9 m each.
    np.testing.assert_allclose(record.motion.positions[:, 0], start + 0.011 * np.arange(1, 25), atol=1e-7)
    np.testing.assert_allclose(record.motion.rotations[9, 1, 0], np.sin(1.0), atol=1e-7)
    assert record.motion.positions.shape == (24, 3)
    # x crosses 0.1 m after ceil((0.1 - start) / 0.011) steps.
    assert record.first_success == int(np.ceil((0.1 - start) / 0.011))
    assert (record.policy, record.index, record.task, record.seed) == ("p", 3, "left", EPISODE.seed)
    assert record.success_any_step
    assert record.success_last_step
    assert record.other_tasks == ()
    # The cup is held beyond 50 mm, and the policy closes its gripper in the first chunk that begins there.
    x = record.motion.positions[:, 0]
    assert record.held == tuple("cup" if value > 0.05 else None for value in x)
    assert record.held.count("cup") > 4
    assert record.gripper_flips == 1


def test_both_success_rules_and_the_other_task(world: Any, make_pusher: Callable[..., Any]) -> None:
    # Turned round at once by its error, the policy walks 9 mm a step to the wrong side and never comes back.
    wrong = run_episode(world, make_pusher(error=-0.02), EPISODE, label="p")
    assert (wrong.success_any_step, wrong.success_last_step, wrong.first_success) == (False, False, None)
    assert wrong.other_tasks == ("right",)
    # Past the goal it stops walking and its error carries it back out: fulfilled on the way, not at the end.
    retreating = make_pusher(error=-0.004, stop_at=0.102)
    world.horizon = 60
    x = run_episode(world, retreating, EPISODE, label="p").motion.positions[:, 0]
    fulfilled = int(np.argmax(x >= 0.1))
    world.horizon = fulfilled + int(np.argmax(x[fulfilled:] < 0.1)) + 1
    passing = run_episode(world, retreating, EPISODE, label="p")
    assert (passing.success_any_step, passing.success_last_step) == (True, False)
    assert passing.first_success == fulfilled + 1 < world.horizon


def test_noise_depends_on_the_episode_and_the_step_only(world: Any, make_pusher: Callable[..., Any]) -> None:
    first, second = make_pusher(noise=0.001), make_pusher(noise=0.001, error=0.005)
    run_episode(world, first, EPISODE, label="a")
    run_episode(world, second, EPISODE, label="b")
    noises = [[noise for _, noise in policy.predictions] for policy in (first, second)]
    assert noises[0] == noises[1]
    assert len(set(noises[0])) == 6  # 24 steps in chunks of 4
    assert first.predictions[2][0] != second.predictions[2][0]
    other = make_pusher(noise=0.001)
    run_episode(world, other, Episode(index=4, task="left", seed=10_000_004), label="a")
    assert [noise for _, noise in other.predictions] != noises[0]


def test_a_branch_continues_the_episode_bit_for_bit(world: Any, make_pusher: Callable[..., Any]) -> None:
    policy = make_pusher(noise=0.002, turn=0.01)
    record = run_episode(world, policy, EPISODE, label="p")
    assert sorted(record.states) == [0, 8]
    for step, state in record.states.items():
        branch = run_branch(world, policy, step=step, state=state, steps=16)
        assert np.array_equal(branch.motion.positions, record.motion.positions[step : step + 16])
        assert np.array_equal(branch.motion.rotations, record.motion.rotations[step : step + 16])
    # The guard can fail: from another state the motion is another one.
    elsewhere = run_branch(world, policy, step=8, state=record.states[0], steps=16)
    assert not np.array_equal(elsewhere.motion.positions, record.motion.positions[8:24])


def test_a_branch_inside_a_chunk_is_refused(world: Any, make_pusher: Callable[..., Any]) -> None:
    with pytest.raises(InvalidInputError, match="multiple of n_action_steps = 4, got 6"):
        run_branch(world, make_pusher(), step=6, state=world.get_state(), steps=4)


def test_drift_of_a_constant_error_is_known(world: Any, make_pusher: Callable[..., Any]) -> None:
    exact, off = make_pusher(noise=0.002), make_pusher(noise=0.002, error=0.003, turn=0.02)
    records = [run_episode(world, policy, EPISODE, label="p") for policy in (exact, off)]
    whole = episode_drift(records[:1], records[1:], seed=0)
    # The error adds 3 mm and 0.02 rad a step, so the RMS over 24 steps is that times the RMS of 1..24.
    growth = np.sqrt(np.mean(np.arange(1, 25) ** 2))
    assert whole.position_mm.rms.value == pytest.approx(3.0 * growth, rel=1e-5)
    assert whole.rotation_deg.rms.value == pytest.approx(np.degrees(0.02) * growth, rel=1e-5)
    assert whole.per_episode[0].index == 3
    state = records[0].states[8]
    branches = [run_branch(world, policy, step=8, state=state, steps=16) for policy in (exact, off)]
    after = branch_drift(branches[:1], branches[1:], horizons=(1, 4, 16), seed=0).after_steps
    for entry, steps in zip(after, (1, 4, 16), strict=True):
        assert entry.steps == steps
        assert entry.position_mm.median.value == pytest.approx(3.0 * steps, rel=1e-5)
        assert entry.rotation_deg.rms.value == pytest.approx(np.degrees(0.02) * steps, rel=1e-5)


def test_episodes_side_by_side_are_those_run_alone(world: Any, make_pusher: Callable[..., Any]) -> None:
    kind, policy = type(world), make_pusher(noise=0.002, turn=0.01)
    tasks = ("left", "right", "left")
    episodes = [Episode(index=i, task=tasks[i], seed=10_000_000 + i, branch_steps=(4 * i,)) for i in range(3)]
    alone = [run_episode(world, policy, episode, label="p") for episode in episodes]
    calls = len(policy.predictions)
    together = run_episodes([kind() for _ in episodes], policy, episodes, label="p")
    assert len(policy.predictions) == 2 * calls
    assert [one.to_json() for one in together] == [one.to_json() for one in alone]
    branches = [
        Branch(episode=episode, step=step, state=state)
        for episode, record in zip(episodes, together, strict=True)
        for step, state in record.states.items()
    ]
    assert [branch.step for branch in branches] == [0, 4, 8]
    continued = run_branches([kind() for _ in branches], policy, branches, steps=6, label="p")
    for branch, one, whole in zip(branches, continued, together, strict=True):
        assert (one.index, one.step) == (whole.index, branch.step)
        assert np.array_equal(one.motion.positions, whole.motion.positions[branch.step : branch.step + 6])


def test_each_task_runs_to_its_own_horizon(world: Any, make_pusher: Callable[..., Any]) -> None:
    class Uneven(type(world)):  # type: ignore[misc]
        def horizon_of(self, task: str) -> int:
            return 7 if task == "right" else self.horizon

    policy = make_pusher(noise=0.002)
    episodes = [Episode(index=i, task=task, seed=10_000_000 + i) for i, task in enumerate(("left", "right", "left"))]
    records = run_episodes([Uneven() for _ in episodes], policy, episodes, label="p")
    assert [len(record.motion.positions) for record in records] == [world.horizon, 7, world.horizon]
    assert [record.index for record in records] == [0, 1, 2]
    alone = run_episode(world, policy, episodes[1], label="p")
    assert np.array_equal(records[1].motion.positions, alone.motion.positions[:7])


def test_a_policy_looks_once_per_chunk(
    world: Any, make_pusher: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    observe = world.observe

    def counted() -> Any:
        looks.append(world.steps)
        return observe()

    monkeypatch.setattr(world, "observe", counted)
    run_episode(world, make_pusher(), EPISODE, label="p")
    assert looks == [0, 0, 4, 8, 12, 16, 20]  # the first is the reset's
