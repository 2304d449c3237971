"""Runs one policy in one environment: a whole episode, or a short branch from a saved state.

An episode always runs to the horizon, whatever happens in it, so that episodes of two policies have the same length and
success can be judged both at any step and at the last one. The records hold what the judgement needs and nothing that
differs from run to run (no times), so the same episode gives the same record in any process.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from daptq.environments._base import Environment
from daptq.errors import InvalidInputError
from daptq.evaluation.plan import Episode
from daptq.policies._base import Policy
from daptq.policies._execution import ChunkExecutor


@dataclass(frozen=True, kw_only=True, eq=False)
class Motion:
    """Where the end-effector was after each control step, in the base frame.

    Attributes:
        positions: float64 (steps, 3) [m].
        rotations: float64 (steps, 3, 3), rotation matrices.
    """

    positions: Float[np.ndarray, "steps 3"]
    rotations: Float[np.ndarray, "steps 3 3"]

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` turns into the identical motion (Python prints floats exactly)."""
        return {"positions": self.positions.tolist(), "rotations": self.rotations.tolist()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Motion:
        """Inverse of `to_json`."""
        positions: NDArray[np.float64] = np.asarray(value["positions"], dtype=np.float64)
        rotations: NDArray[np.float64] = np.asarray(value["rotations"], dtype=np.float64)
        return cls(positions=positions, rotations=rotations)


@dataclass(frozen=True, kw_only=True, eq=False)
class EpisodeRecord:
    """What one policy did in one episode.

    Attributes:
        policy: Label of the policy in this evaluation.
        index: Number of the episode.
        task: Name of the task that was asked.
        seed: Seed of the episode.
        success_any_step: The task was fulfilled after at least one step.
        success_last_step: The task was fulfilled after the last step.
        first_success: Number of steps after which the task was first fulfilled, or None.
        other_tasks: Tasks of the scene that were fulfilled at some step without being asked, sorted.
        motion: End-effector pose after each step.
        states: Saved states, by the control step that they precede; each float64 (state,).
    """

    policy: str
    index: int
    task: str
    seed: int
    success_any_step: bool
    success_last_step: bool
    first_success: int | None
    other_tasks: tuple[str, ...]
    motion: Motion
    states: dict[int, NDArray[np.float64]] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, int, int | None]:
        """Identifies the record within an evaluation."""
        return self.policy, self.index, None

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` turns into the identical record."""
        states = {str(step): state.tolist() for step, state in self.states.items()}
        plain = {name: getattr(self, name) for name in ("policy", "index", "task", "seed", "first_success")}
        success = {"success_any_step": self.success_any_step, "success_last_step": self.success_last_step}
        return {
            **plain,
            **success,
            "other_tasks": list(self.other_tasks),
            "motion": self.motion.to_json(),
            "states": states,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> EpisodeRecord:
        """Inverse of `to_json`."""
        states = {int(step): np.asarray(state, dtype=np.float64) for step, state in value["states"].items()}
        replaced = {
            "motion": Motion.from_json(value["motion"]),
            "states": states,
            "other_tasks": tuple(value["other_tasks"]),
        }
        return cls(**{**value, **replaced})


@dataclass(frozen=True, kw_only=True, eq=False)
class BranchRecord:
    """What one policy did from a state saved along a full-precision episode.

    Attributes:
        policy: Label of the policy in this evaluation.
        index: Number of the episode that the state comes from.
        step: Control step that the state precedes.
        motion: End-effector pose after each step of the branch.
    """

    policy: str
    index: int
    step: int
    motion: Motion

    @property
    def key(self) -> tuple[str, int, int | None]:
        """Identifies the record within an evaluation."""
        return self.policy, self.index, self.step

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` turns into the identical record."""
        return {"policy": self.policy, "index": self.index, "step": self.step, "motion": self.motion.to_json()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> BranchRecord:
        """Inverse of `to_json`."""
        return cls(**{**value, "motion": Motion.from_json(value["motion"])})


Record = EpisodeRecord | BranchRecord


def run_episode(environment: Environment, policy: Policy, episode: Episode, *, label: str) -> EpisodeRecord:
    """Runs `episode` to the environment's horizon.

    Args:
        environment: The environment; it is reset with the episode's task and seed.
        policy: The policy that acts.
        episode: What to run. States are saved before its `branch_steps`.
        label: Name of the policy in the record.
    """
    observation, info = environment.reset(seed=episode.seed, options={"task": episode.task})
    executor = ChunkExecutor(policy, seed=episode.seed)
    poses = _PoseLog()
    states: dict[int, NDArray[np.float64]] = {}
    successes: list[bool] = []
    others: set[str] = set()
    for step in range(environment.horizon):
        if step in episode.branch_steps:
            states[step] = np.array(environment.get_state(), dtype=np.float64)
        action = executor.action(observation, info["task"], step)
        observation, _, _, _, info = environment.step(action)
        poses.append(info)
        successes.append(bool(info["success"]))
        others.update(name for name, done in info["success_by_task"].items() if done and name != episode.task)
    return EpisodeRecord(
        policy=label,
        index=episode.index,
        task=episode.task,
        seed=episode.seed,
        success_any_step=any(successes),
        success_last_step=successes[-1],
        first_success=successes.index(True) + 1 if any(successes) else None,
        other_tasks=tuple(sorted(others)),
        motion=poses.motion(),
        states=states,
    )


def run_branch(
    environment: Environment,
    policy: Policy,
    episode: Episode,
    *,
    step: int,
    state: NDArray[np.float64],
    steps: int,
    label: str,
) -> BranchRecord:
    """Continues from `state` for `steps` control steps with a chunk predicted at the first of them.

    The noise at control step k is that of the episode at step k: two policies that branch from one state see the same
    noise, and the policy that reached the state continues as it did in the episode.

    Args:
        environment: The environment; it is reset to the episode, then to `state`.
        policy: The policy that acts.
        episode: The episode in which the state was saved.
        step: Control step that the state precedes, a multiple of the policy's `n_action_steps`.
        state: float64 (state,), from `Environment.get_state`.
        steps: Number of control steps to run.
        label: Name of the policy in the record.

    Raises:
        InvalidInputError: `step` lies inside a chunk of this policy, so that no chunk would start there.
    """
    if step % policy.n_action_steps:
        message = f"step must be a multiple of n_action_steps = {policy.n_action_steps}, got {step}."
        raise InvalidInputError(message + " Branch where a chunk begins.")
    environment.reset(seed=episode.seed, options={"task": episode.task})
    observation, info = environment.set_state(state)
    executor = ChunkExecutor(policy, seed=episode.seed)
    poses = _PoseLog()
    for offset in range(steps):
        action = executor.action(observation, info["task"], step + offset)
        observation, _, _, _, info = environment.step(action)
        poses.append(info)
    return BranchRecord(policy=label, index=episode.index, step=step, motion=poses.motion())


class _PoseLog:
    """Collects the end-effector pose out of each step's info."""

    def __init__(self) -> None:
        self._positions: list[NDArray[np.float64]] = []
        self._rotations: list[NDArray[np.float64]] = []

    def append(self, info: dict[str, Any]) -> None:
        self._positions.append(np.array(info["end_effector_position"], dtype=np.float64))
        self._rotations.append(np.array(info["end_effector_rotation"], dtype=np.float64))

    def motion(self) -> Motion:
        return Motion(positions=np.stack(self._positions), rotations=np.stack(self._rotations))
