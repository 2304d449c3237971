"""Runs one policy: whole episodes, or short branches from saved states, one or several side by side.

An episode always runs to the horizon, whatever happens in it, so that episodes of two policies have the same length and
success can be judged both at any step and at the last one. The records hold what the judgement needs and nothing that
differs from run to run (no times), so the same episode gives the same record in any process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from daptq.closed_loop.episodes import Episode
from daptq.closed_loop.interface_stream import EpisodeStream, Reading
from daptq.environments.contract import Environment, Info
from daptq.errors import InvalidInputError
from daptq.policies.captured import captured_denoising
from daptq.policies.contract import Policy
from daptq.policies.execution import predict_chunks


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
        gripper_flips: How often a commanded gripper changed between open and closed.
        held: Name of the object between the fingers after each step, or None.
        motion: End-effector pose after each step.
        states: Saved states, by the control step that they precede; each float64 (state,).
        interface: What passed the perception-to-action interface, where that was watched.
    """

    policy: str
    index: int
    task: str
    seed: int
    success_any_step: bool
    success_last_step: bool
    first_success: int | None
    other_tasks: tuple[str, ...]
    gripper_flips: int
    held: tuple[str | None, ...]
    motion: Motion
    states: dict[int, NDArray[np.float64]] = field(default_factory=dict)
    interface: Reading | None = None

    @property
    def key(self) -> tuple[str, int, int | None]:
        """Identifies the record within an evaluation."""
        return self.policy, self.index, None

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` turns into the identical record."""
        states = {str(step): state.tolist() for step, state in self.states.items()}
        names = ("policy", "index", "task", "seed", "first_success", "gripper_flips")
        plain = {name: getattr(self, name) for name in names}
        success = {"success_any_step": self.success_any_step, "success_last_step": self.success_last_step}
        return {
            **plain,
            **success,
            "other_tasks": list(self.other_tasks),
            "held": list(self.held),
            "motion": self.motion.to_json(),
            "states": states,
            **({} if self.interface is None else {"interface": asdict(self.interface)}),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> EpisodeRecord:
        """Inverse of `to_json`."""
        states = {int(step): np.asarray(state, dtype=np.float64) for step, state in value["states"].items()}
        replaced = {
            "motion": Motion.from_json(value["motion"]),
            "states": states,
            "other_tasks": tuple(value["other_tasks"]),
            "held": tuple(value["held"]),
            "interface": Reading(**value["interface"]) if "interface" in value else None,
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

_POSE = ("end_effector_position", "end_effector_rotation")
_KEPT = ("success", "success_by_task", *_POSE)


@dataclass(frozen=True, kw_only=True, eq=False)
class Branch:
    """A state to continue from.

    Attributes:
        episode: The episode in which the state was saved.
        step: Control step that the state precedes.
        state: float64 (state,), from `Environment.get_state`.
    """

    episode: Episode
    step: int
    state: Float[np.ndarray, " state"]


def run_episodes(
    environments: Sequence[Environment], policy: Policy, episodes: Sequence[Episode], *, label: str
) -> list[EpisodeRecord]:
    """Runs episodes to their tasks' horizon, side by side: one call of the policy predicts for all of one horizon.

    What an episode shares a call with changes the float rounding of its actions and nothing else.

    Args:
        environments: One environment for each episode; it is reset with the episode's task and seed.
        policy: The policy that acts.
        episodes: What to run. States are saved before an episode's `branch_steps`.
        label: Name of the policy in the records.
    """
    worlds = _started(environments, episodes)
    for horizon, group in _by_horizon(worlds):
        _drive(group, policy, horizon)
    return [world.record(label) for world in worlds]


def run_watched(
    environments: Sequence[Environment],
    policy: Policy,
    episodes: Sequence[Episode],
    *,
    label: str,
    watch: Callable[[Sequence[str]], AbstractContextManager[list[EpisodeStream]]],
) -> tuple[list[EpisodeRecord], list[EpisodeStream]]:
    """Runs episodes as `run_episodes` does, and watches the policy's interface meanwhile.

    Args:
        environments: One environment for each episode.
        policy: The policy that acts.
        episodes: What to run.
        label: Name of the policy in the records.
        watch: Watches the policy over episodes that run side by side, given their instructions.

    Returns:
        Records and streams, in the order of the episodes.
    """
    worlds = _started(environments, episodes)
    streams: dict[int, EpisodeStream] = {}
    for horizon, group in _by_horizon(worlds):
        with watch([world.environment.instruction for world in group]) as found:
            _steps(group, policy, horizon)  # a recorded denoising loop would not call what watches
        streams |= {world.episode.index: stream for world, stream in zip(group, found, strict=True)}
    return [world.record(label) for world in worlds], [streams[episode.index] for episode in episodes]


def _started(environments: Sequence[Environment], episodes: Sequence[Episode]) -> list[_World]:
    worlds = [_World(*both) for both in zip(environments, episodes, strict=True)]
    for world in worlds:
        world.reset()
    return worlds


def _by_horizon(worlds: Sequence[_World]) -> Iterator[tuple[int, list[_World]]]:
    """The worlds that run equally many steps, which share the calls of the policy, and how many steps those are."""
    horizons = [world.environment.horizon_of(world.episode.task) for world in worlds]
    for horizon in sorted(set(horizons)):
        yield horizon, [world for world, own in zip(worlds, horizons, strict=True) if own == horizon]


def run_episode(environment: Environment, policy: Policy, episode: Episode, *, label: str) -> EpisodeRecord:
    """Runs one episode; see `run_episodes`."""
    return run_episodes([environment], policy, [episode], label=label)[0]


def run_branches(
    environments: Sequence[Environment], policy: Policy, branches: Sequence[Branch], *, steps: int, label: str
) -> list[BranchRecord]:
    """Continues from saved states, side by side, with a chunk predicted at the first step of each.

    The noise at control step k is that of the episode at step k: two policies that branch from one state see the same
    noise, and the policy that reached the state continues as it did in the episode.

    Args:
        environments: One environment for each branch; it is reset to the episode, then to the state.
        policy: The policy that acts.
        branches: Where to continue from; each step a multiple of the policy's `n_action_steps`.
        steps: Number of control steps to run.
        label: Name of the policy in the records.

    Raises:
        InvalidInputError: A step lies inside a chunk of this policy, so that no chunk would start there.
    """
    for branch in branches:
        if branch.step % policy.n_action_steps:
            message = f"step must be a multiple of n_action_steps = {policy.n_action_steps}, got {branch.step}."
            raise InvalidInputError(message + " Branch where a chunk begins.")
    worlds = []
    for environment, branch in zip(environments, branches, strict=True):
        worlds.append(_World(environment, branch.episode, first_step=branch.step))
        worlds[-1].reset(branch.state)
    _drive(worlds, policy, steps)
    return [
        BranchRecord(policy=label, index=world.episode.index, step=world.first_step, motion=world.motion())
        for world in worlds
    ]


def _drive(worlds: Sequence[_World], policy: Policy, steps: int) -> None:
    """Runs `steps` control steps in every world; pictures are drawn only where a chunk begins."""
    with captured_denoising(policy):
        _steps(worlds, policy, steps)


def _steps(worlds: Sequence[_World], policy: Policy, steps: int) -> None:
    chunks: NDArray[np.float32] = np.empty(0, np.float32)
    for offset in range(steps):
        phase = offset % policy.n_action_steps
        if phase == 0:
            chunks = predict_chunks(
                policy,
                [world.environment.observe() for world in worlds],
                [world.environment.instruction for world in worlds],
                seeds=[world.episode.seed for world in worlds],
                step_indices=[world.first_step + offset for world in worlds],
            ).numpy()
        for world, chunk in zip(worlds, chunks, strict=True):
            world.advance(chunk[phase].astype(np.float32), offset)


class _World:
    """One environment in one episode, and what happened in it since `first_step`."""

    def __init__(self, environment: Environment, episode: Episode, first_step: int = 0) -> None:
        self.environment = environment
        self.episode = episode
        self.first_step = first_step
        self._states: dict[int, NDArray[np.float64]] = {}
        self._infos: list[Info] = []
        self._opens: list[tuple[bool, ...]] = []
        self._grippers = [i for i, one in enumerate(environment.action_dimensions) if one.kind == "gripper"]
        self._held: list[str | None] = []

    def reset(self, state: NDArray[np.float64] | None = None) -> None:
        self.environment.reset(seed=self.episode.seed, options={"task": self.episode.task})
        if state is not None:
            self.environment.set_state(state)

    def advance(self, action: NDArray[np.float32], offset: int) -> None:
        if self.first_step == 0 and offset in self.episode.branch_steps:
            self._states[offset] = np.array(self.environment.get_state(), dtype=np.float64)
        info = self.environment.advance(action)
        self._opens.append(tuple(bool(action[i] > 0) for i in self._grippers))
        self._held.append(self.environment.privileged_state()["held"])
        self._infos.append({key: np.array(info[key]) if key in _POSE else info[key] for key in _KEPT})

    def motion(self) -> Motion:
        positions, rotations = (np.stack([info[key] for info in self._infos]).astype(np.float64) for key in _POSE)
        return Motion(positions=positions, rotations=rotations)

    def record(self, label: str) -> EpisodeRecord:
        successes = [bool(info["success"]) for info in self._infos]
        done = {name for info in self._infos for name, fulfilled in info["success_by_task"].items() if fulfilled}
        return EpisodeRecord(
            policy=label,
            index=self.episode.index,
            task=self.episode.task,
            seed=self.episode.seed,
            success_any_step=any(successes),
            success_last_step=successes[-1],
            first_success=successes.index(True) + 1 if any(successes) else None,
            other_tasks=tuple(sorted(done - {self.episode.task})),
            gripper_flips=sum(
                one != other
                for before, after in zip(self._opens, self._opens[1:], strict=False)
                for one, other in zip(before, after, strict=True)
            ),
            held=tuple(self._held),
            motion=self.motion(),
            states=self._states,
        )
