"""What observations are called, and how large pictures are: LeRobot's keys.

Environments, calibration data and policies use the same keys; this module knows none of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

__all__ = ["ACTION", "STATE", "TASK", "CameraSize", "ImageSizes", "camera_key", "camera_name", "is_camera"]

STATE: Final = "observation.state"
TASK: Final = "task"
ACTION: Final = "action"

_IMAGE: Final = "observation.image"  # LeRobot's key of the only camera of some data sets
_IMAGES: Final = "observation.images."


class CameraSize(NamedTuple):
    """Size of a picture [px]."""

    height: int
    width: int


ImageSizes = Mapping[str, int | tuple[int, int] | None]
"""Sizes [px] that an environment is asked for, by short name or full key of a camera: the edge length of a square,
height and width, or None for the environment's own size."""


def camera_key(camera: str) -> str:
    """Key of a camera's pictures, ``observation.images.<name>``; a full key stays as it is."""
    return camera if is_camera(camera) else _IMAGES + camera


def camera_name(key: str) -> str:
    """Short name of a camera; of a full key the part after ``observation.images.``."""
    return key.removeprefix(_IMAGES)


def is_camera(key: str) -> bool:
    """Whether an observation's key is a camera's."""
    return key == _IMAGE or key.startswith(_IMAGES)
