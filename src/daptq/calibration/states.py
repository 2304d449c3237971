"""Calibration states from recorded demonstrations of any environment.

States are drawn at random, without repetition, from successful demonstrations; recordings that are not in the cache
yet are made on the way. Cameras and image sizes are those of the recordings.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from daptq.artifacts import hash_tensors
from daptq.calibration.contract import CalibrationSource
from daptq.calibration.demonstrations import DemonstrationSet, DemonstrationSettings
from daptq.errors import CalibrationDataError
from daptq.observations import ACTION, STATE, TASK, camera_key
from daptq.policies.contract import Batch

__all__ = ["DemonstrationSource", "open_demonstrations"]

BATCH_SIZE = 16
STATES_PER_EPISODE = 6.4
TASK_INDEX = "task_index"


def open_demonstrations(
    settings: DemonstrationSettings, split: str, *, limit: int | None, seed: int, folder: Path | None = None
) -> DemonstrationSource:
    """Opens a split of the demonstrations.

    Args:
        settings: What is demonstrated.
        split: Name of the split.
        limit: Number of states, drawn from one recording of 40 episodes per 256 states; None for every state.
        seed: Decides which states are drawn.
        folder: Where the recordings are, by default the user's cache.

    Raises:
        UnknownNameError: No such split.
        CalibrationDataError: `limit` is less than one or more than the split holds.
    """
    if limit is not None and limit < 1:
        raise CalibrationDataError(f"number of calibration states must be at least 1, got {limit}. Ask for 512.")
    return DemonstrationSource(DemonstrationSet(settings, split, folder), limit=limit, seed=seed)


class DemonstrationSource(CalibrationSource):
    """Batches of up to 16 demonstration states; see `open_demonstrations`."""

    licence = "Apache-2.0"

    def __init__(self, demonstrations: DemonstrationSet, *, limit: int | None, seed: int) -> None:
        settings, split = demonstrations.settings, demonstrations.split
        count = settings.shards[split]
        if limit is not None:
            count = min(count, math.ceil(limit / (STATES_PER_EPISODE * settings.episodes_per_shard)))
        keys = (STATE, ACTION, TASK_INDEX, *map(camera_key, settings.cameras))
        columns: dict[str, list[Tensor]] = {key: [] for key in keys}
        for index in range(count):
            shard = demonstrations.shard(index)
            kept = torch.tensor(shard.metadata["success"])[shard.tensor("episode_index")]
            for key in keys:
                columns[key].append(shard.tensor(key)[kept])
        available = sum(len(part) for part in columns[ACTION])
        if limit is not None and limit > available:
            raise CalibrationDataError(
                f"number of calibration states must be at most {available} for {settings.name}:{split}, got {limit}. "
                "Ask for fewer."
            )
        order = torch.randperm(available, generator=torch.Generator().manual_seed(seed))[:limit]
        self._states = {key: torch.cat(parts)[order] for key, parts in columns.items()}
        self._cameras = tuple(map(camera_key, settings.cameras))
        self._instructions = [task.instruction for task in settings.tasks.values()]
        self.description = f"{len(order)} states of scripted {settings.name} demonstrations, split {split}, seed {seed}"
        read = torch.tensor(list("\n".join(self._instructions).encode()), dtype=torch.uint8)
        self.hash = hash_tensors(self._states | {TASK: read})

    def __iter__(self) -> Iterator[Batch]:
        """Yields the batches from the first one on; a batch is the reader's own."""
        for start in range(0, len(self._states[ACTION]), BATCH_SIZE):
            rows = {key: value[start : start + BATCH_SIZE].clone() for key, value in self._states.items()}
            tasks = [self._instructions[index] for index in rows.pop(TASK_INDEX).tolist()]
            for key in self._cameras:
                rows[key] = rows[key].permute(0, 3, 1, 2).float().div(255.0)
            yield rows | {TASK: tasks}
