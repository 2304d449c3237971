"""Calibration states from the scripted demonstrations of the `tabletop` benchmark, splits `train` and `validation`."""

from __future__ import annotations

from pathlib import Path

from daptq.calibration.demonstrations import DemonstrationSettings
from daptq.calibration.states import DemonstrationSource, open_demonstrations
from daptq.environments.tabletop import make
from daptq.environments.tabletop.expert import TabletopExpert
from daptq.environments.tabletop.objects import SCENES, TASKS

__all__ = ["DEMONSTRATIONS", "open_source"]

CAMERAS = {"front": 96, "wrist": 64}
DEMONSTRATIONS = DemonstrationSettings(
    name="tabletop",
    version=2,
    environment=lambda: make(image_size=CAMERAS),
    expert=TabletopExpert(),
    tasks=TASKS,
    objects=tuple(spec.name for scene in SCENES.values() for spec in scene),
    cameras=CAMERAS,
    shards={"train": 48, "validation": 4},
    episodes_per_shard=40,
)


def open_source(split: str, *, limit: int | None, seed: int, folder: Path | None = None) -> DemonstrationSource:
    """Opens a split of the demonstrations; see `open_demonstrations`."""
    return open_demonstrations(DEMONSTRATIONS, split, limit=limit, seed=seed, folder=folder)
