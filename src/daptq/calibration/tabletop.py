"""Calibration states from the scripted demonstrations of the `tabletop` benchmark, splits `train` and `validation`.

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
from daptq.calibration._base import CalibrationSource
from daptq.calibration._demonstrations import IMAGE_SIZE, SHARDS, DemonstrationSet
from daptq.environments._tabletop_objects import TASKS
from daptq.errors import CalibrationDataError
from daptq.policies._base import ACTION, IMAGE_PREFIX, STATE, TASK, Batch

__all__ = ["TabletopSource", "open_source"]

BATCH_SIZE = 16
STATES_PER_SHARD = 256
TASK_INDEX = "task_index"


def open_source(split: str, *, limit: int | None, seed: int, folder: Path | None = None) -> TabletopSource:
    """Opens a split of the demonstrations.

    Args:
        split: ``train`` or ``validation``.
        limit: Number of states, drawn from one recording of 40 episodes per 256 states; None for every state.
        seed: Decides which states are drawn.
        folder: Where the recordings are, by default the user's cache.

    Raises:
        UnknownNameError: No such split.
        CalibrationDataError: `limit` is less than one or more than the split holds.
    """
    if limit is not None and limit < 1:
        raise CalibrationDataError(f"number of calibration states must be at least 1, got {limit}. Ask for 512.")
    return TabletopSource(DemonstrationSet(split, folder), limit=limit, seed=seed)


class TabletopSource(CalibrationSource):
    """Batches of up to 16 demonstration states; see `open_source`."""

    licence = "Apache-2.0"

    def __init__(self, demonstrations: DemonstrationSet, *, limit: int | None, seed: int) -> None:
        split = demonstrations.split
        count = SHARDS[split] if limit is None else min(SHARDS[split], math.ceil(limit / STATES_PER_SHARD))
        keys = (STATE, ACTION, TASK_INDEX, *(IMAGE_PREFIX + camera for camera in IMAGE_SIZE))
        columns: dict[str, list[Tensor]] = {key: [] for key in keys}
        for index in range(count):
            shard = demonstrations.shard(index)
            kept = torch.tensor(shard.metadata["success"])[shard.tensor("episode_index")]
            for key in keys:
                columns[key].append(shard.tensor(key)[kept])
        available = sum(len(part) for part in columns[ACTION])
        if limit is not None and limit > available:
            raise CalibrationDataError(
                f"number of calibration states must be at most {available} for tabletop:{split}, got {limit}. "
                "Ask for fewer."
            )
        order = torch.randperm(available, generator=torch.Generator().manual_seed(seed))[:limit]
        self._states = {key: torch.cat(parts)[order] for key, parts in columns.items()}
        self._instructions = [task.instruction for task in TASKS.values()]
        self.description = f"{len(order)} states of scripted tabletop demonstrations, split {split}, seed {seed}"
        self.hash = hash_tensors(self._states)

    def __iter__(self) -> Iterator[Batch]:
        """Yields the batches from the first one on."""
        for start in range(0, len(self._states[ACTION]), BATCH_SIZE):
            rows = {key: value[start : start + BATCH_SIZE] for key, value in self._states.items()}
            tasks = [self._instructions[index] for index in rows.pop(TASK_INDEX).tolist()]
            for camera in IMAGE_SIZE:
                key = IMAGE_PREFIX + camera
                rows[key] = rows[key].permute(0, 3, 1, 2).float().div(255.0)
            yield rows | {TASK: tasks}
