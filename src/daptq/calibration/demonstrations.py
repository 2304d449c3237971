"""Demonstrations of a scripted expert, recorded into shards on first use and kept in a cache.

An episode is disturbed now and then by a burst of random actions, so that recoveries are demonstrated too; the labels
are always what the expert would do. `DemonstrationSettings` say what is demonstrated. The module knows nothing of
policies, nor of any one environment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from daptq._cache import cache_folder
from daptq.artifacts import Artifact, read_artifact, write_artifact
from daptq.environments.contract import Environment
from daptq.errors import DaptqError, UnknownNameError

KIND = "demonstrations"
CHUNK_SIZE = 16
FIRST_SEED: Mapping[str, int] = {"train": 0, "validation": 500_000}
HOLD_STEPS = 6

LeadIn = Callable[[Mapping[str, Any], int], NDArray[np.float32]]


class Task(Protocol):
    """A task as a recording describes it."""

    @property
    def instruction(self) -> str:
        """The instruction that the policy reads."""

    @property
    def source(self) -> str:
        """Object to move."""

    @property
    def target(self) -> str:
        """Object that receives it."""


class Expert(Protocol):
    """A scripted expert."""

    def action(self, environment: Any, /) -> NDArray[np.float32]:
        """Returns the action, float32 (7,), for the environment's present state and asked task."""


@dataclass(frozen=True, kw_only=True)
class DemonstrationSettings:
    """What is demonstrated.

    Attributes:
        name: Name of the environment.
        version: Number of the recording; it changes when the same seed would give another one.
        environment: Makes the environment, with the cameras that are recorded.
        expert: Demonstrates.
        tasks: The environment's tasks by name, in its order; episodes take turns.
        objects: Names of the objects whose poses are recorded.
        cameras: Edge in pixels of each camera's picture.
        shards: Number of shards of each split.
        episodes_per_shard: Episodes of a shard.
        episodes_per_seed: Successive episodes with the same seed.
        options: Options of every reset except the task.
    """

    name: str
    version: int
    environment: Callable[[], Environment]
    expert: Expert
    tasks: Mapping[str, Task]
    objects: tuple[str, ...]
    cameras: Mapping[str, int]
    shards: Mapping[str, int]
    episodes_per_shard: int
    episodes_per_seed: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)

    def task(self, number: int) -> str:
        """Name of the task of episode `number`."""
        return list(self.tasks)[number % len(self.tasks)]

    @property
    def folder(self) -> Path:
        """Where recordings are kept."""
        return cache_folder() / f"{self.name}-v{self.version}"


@dataclass(frozen=True, kw_only=True)
class Disturbance:
    """Bursts of random actions in an episode.

    Attributes:
        max_bursts: Up to so many bursts, uniformly many.
        max_steps: Steps of a burst, uniform from 1.
        translation: Half-width of the uniform random translation per step [m].
        yaw: Half-width of the uniform random yaw per step [rad].
        flip_probability: Probability that a burst holds the gripper command reversed.
    """

    max_bursts: int = 3
    max_steps: int = 3
    translation: float = 0.03
    yaw: float = 0.15
    flip_probability: float = 0.2

    def schedule(self, rng: np.random.Generator, horizon: int) -> dict[int, NDArray[np.float32]]:
        """Maps disturbed steps to float32 (7,) offsets; the gripper entry is -1 where the command is reversed."""
        offsets: dict[int, NDArray[np.float32]] = {}
        for _ in range(rng.integers(0, self.max_bursts + 1)):
            start = int(rng.integers(0, horizon // 2))
            gripper = -1.0 if rng.random() < self.flip_probability else 1.0
            for step in range(start, start + int(rng.integers(1, self.max_steps + 1))):
                offset = np.zeros(7, dtype=np.float32)
                offset[:3] = rng.uniform(-self.translation, self.translation, 3)
                offset[5] = rng.uniform(-self.yaw, self.yaw)
                offset[6] = gripper
                offsets[step] = offset
        return offsets


@dataclass
class Episode:
    """Frames of one demonstration; every array's first axis is the frame."""

    task: str
    seed: int
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    success: bool = False


def record_episode(
    environment: Environment,
    settings: DemonstrationSettings,
    *,
    task: str,
    seed: int,
    disturbance: Disturbance | None,
    lead_in: LeadIn | None = None,
    takeover: int = 0,
) -> Episode:
    """Records the expert on one task; it gives every label, also in the steps where something else was executed.

    Args:
        environment: Reset and driven here.
        settings: What is demonstrated.
        task: Task to demonstrate.
        seed: Seed of the scene and of the disturbance.
        disturbance: Bursts of random actions, or None.
        lead_in: Controls the first `takeover` steps, which are not recorded: the expert then recovers from where that
            controller went.
        takeover: Step at which the expert takes over.

    Returns:
        Arrays `observation.images.<camera>` uint8, `observation.state` float32 (n, 7), `action` float32 (n, 7) the
        expert's label, `valid` int64 (n,) number of consecutive labels from this frame on that no disturbance
        contradicts, `object_positions` float32 (n, objects, 3) [m] and `object_yaws` (n, objects) [rad], NaN for
        objects of another scene.
    """
    observation, _ = environment.reset(seed=seed, options={"task": task, **settings.options})
    rng = np.random.default_rng([seed, list(settings.tasks).index(task), settings.version])
    offsets = disturbance.schedule(rng, environment.horizon_of(task)) if disturbance else {}
    rows: dict[str, list[NDArray[Any]]] = {}
    disturbed: list[bool] = []
    held_still = 0
    info: dict[str, Any] = {"success": False}
    for step in range(environment.horizon_of(task)):
        if lead_in is not None and step < takeover:
            observation, _, _, _, info = environment.step(lead_in(observation, step))
            continue
        label = settings.expert.action(environment)
        for key, value in (observation | _privileged(environment, settings.objects) | {"action": label}).items():
            rows.setdefault(key, []).append(value)
        executed, offset = label, offsets.get(step)
        if offset is not None:
            executed = label + offset
            executed[6] = label[6] * offset[6]
        disturbed.append(offset is not None)
        observation, _, _, _, info = environment.step(executed)
        still = info["success"] and float(np.abs(label[:6]).max()) < 1e-3
        held_still = held_still + 1 if still else 0
        if held_still >= HOLD_STEPS:
            break
    arrays = {key: np.stack(values) for key, values in rows.items()}
    arrays["valid"] = _valid_lengths(disturbed)
    return Episode(task=task, seed=seed, arrays=arrays, success=bool(info["success"]))


def _privileged(environment: Environment, objects: Sequence[str]) -> dict[str, NDArray[np.float32]]:
    state = environment.privileged_state()
    missing = np.full(3, np.nan)
    positions = np.array([state.get(f"{name}.position", missing) for name in objects], dtype=np.float32)
    yaws = np.array([state.get(f"{name}.yaw", missing[:1])[0] for name in objects], dtype=np.float32)
    return {"object_positions": positions, "object_yaws": yaws}


def _valid_lengths(disturbed: list[bool]) -> NDArray[np.int64]:
    """Labels from frame t up to and including the next disturbed frame agree with what was executed before each."""
    lengths: NDArray[np.int64] = np.full(len(disturbed), CHUNK_SIZE, dtype=np.int64)
    for frame in range(len(disturbed)):
        following = disturbed[frame : frame + CHUNK_SIZE]
        if True in following:
            lengths[frame] = following.index(True) + 1
    return lengths


def action_chunks(actions: NDArray[np.float32], chunk_size: int = CHUNK_SIZE) -> NDArray[np.float32]:
    """Chunks float32 (n, chunk_size, 7) of one episode's actions; past its end the arm rests and keeps its gripper."""
    rest = actions[-1].copy()
    rest[:6] = 0
    padded = np.concatenate([actions, np.repeat(rest[None], chunk_size - 1, axis=0)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, chunk_size, axis=0)
    return np.ascontiguousarray(windows.transpose(0, 2, 1))


def shard_tensors(episodes: Sequence[Episode], tasks: Sequence[str]) -> dict[str, Tensor]:
    """Joins episodes: `action` becomes chunks; int64 `episode_index`, `task_index` and `frame_index` are added."""
    joined: dict[str, list[NDArray[Any]]] = {}
    for index, episode in enumerate(episodes):
        count = len(episode.arrays["action"])
        arrays = episode.arrays | {
            "action": action_chunks(episode.arrays["action"]),
            "episode_index": np.full(count, index, dtype=np.int64),
            "task_index": np.full(count, tasks.index(episode.task), dtype=np.int64),
            "frame_index": np.arange(count, dtype=np.int64),
        }
        for key, value in arrays.items():
            joined.setdefault(key, []).append(value)
    return {key: torch.from_numpy(np.concatenate(values)) for key, values in joined.items()}


class DemonstrationSet:
    """The recorded demonstrations of one split, shard by shard; missing shards are recorded when first read.

    Args:
        settings: What is demonstrated.
        split: ``train`` or ``validation``; the seeds of the two never meet, nor those of evaluation episodes.
        folder: Where the shards are, by default the cache.

    Raises:
        UnknownNameError: No such split.
    """

    def __init__(self, settings: DemonstrationSettings, split: str, folder: Path | None = None) -> None:
        if split not in settings.shards:
            raise UnknownNameError(f"split of {settings.name}", split, settings.shards)
        self.settings = settings
        self.split = split
        self.folder = (folder or settings.folder) / split

    def shard(self, index: int) -> Artifact:
        """Reads shard `index`, recording it first when it is missing.

        Raises:
            ArtifactError: The recording in the cache is damaged; delete its folder to have it recorded again.
        """
        path = self.folder / f"shard-{index:05d}"
        if path.exists():
            return read_artifact(path, kind=KIND)
        settings = self.settings
        episodes = list(self._record(index))
        metadata = {
            "split": self.split,
            "tasks": list(settings.tasks),
            "instructions": [task.instruction for task in settings.tasks.values()],
            "objects": list(settings.objects),
            "recording_version": settings.version,
            "seeds": [episode.seed for episode in episodes],
            "success": [episode.success for episode in episodes],
        }
        try:
            write_artifact(path, kind=KIND, tensors=shard_tensors(episodes, list(settings.tasks)), metadata=metadata)
        except DaptqError:
            if not path.exists():  # otherwise another process has just recorded the same shard
                raise
        return read_artifact(path, kind=KIND)

    def _record(self, index: int) -> Iterator[Episode]:
        settings = self.settings
        environment = settings.environment()
        try:
            for number in range(index * settings.episodes_per_shard, (index + 1) * settings.episodes_per_shard):
                yield record_episode(
                    environment,
                    settings,
                    task=settings.task(number),
                    seed=FIRST_SEED[self.split] + number // settings.episodes_per_seed,
                    disturbance=Disturbance(),
                )
        finally:
            environment.close()
