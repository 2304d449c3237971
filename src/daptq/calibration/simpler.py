"""Calibration states from scripted demonstrations of SimplerEnv's WidowX tasks, splits `train` and `validation`.

Demonstrations begin near the official initial states, never in one: what is calibrated or trained on them can be
judged in all of those. Recording needs the extra `simpler`; reading what is recorded does not.
"""

from __future__ import annotations

from pathlib import Path

from daptq.calibration.demonstrations import DemonstrationSettings
from daptq.calibration.states import DemonstrationSource, open_demonstrations
from daptq.environments.simpler import make
from daptq.environments.simpler.expert import SimplerExpert
from daptq.environments.simpler.tasks import TASKS

__all__ = ["DEMONSTRATIONS", "open_source"]

CAMERAS = {"front": 96}
DEMONSTRATIONS = DemonstrationSettings(
    name="simpler",
    version=1,
    environment=lambda: make(image_size=CAMERAS),
    expert=SimplerExpert(),
    tasks=TASKS,
    objects=tuple(name for task in TASKS.values() for name in (task.source, task.target)),
    cameras=CAMERAS,
    shards={"train": 48, "validation": 4},
    episodes_per_shard=16,
    episodes_per_seed=len(TASKS),  # the seed's remainder chooses the initial state: each task has to see them all
    options={"scattered": True},
)


def open_source(split: str, *, limit: int | None, seed: int, folder: Path | None = None) -> DemonstrationSource:
    """Opens a split of the demonstrations; see `open_demonstrations`."""
    return open_demonstrations(DEMONSTRATIONS, split, limit=limit, seed=seed, folder=folder)
