"""Chooses where and at which yaw to grasp an object so that the opened fingers come down beside its neighbours.

Seen from above, fingers and neighbours are discs. The first choice is the object's origin with the fingers across its
long axis; a turn of the gripper or another place along the object is taken only where the first choice would hit
something. It knows nothing of the palm, which stays above everything on the table.
"""

from __future__ import annotations

from itertools import product
from typing import Any, Final

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from daptq.environments.tabletop.objects import ObjectSpec
from daptq.environments.tabletop.scene import FINGER_OPEN

_FINGER_RADIUS: Final = 0.0115
_FINGER_BELOW: Final = 0.020  # the fingertips' distance below the end-effector [m]
_MARGIN: Final = 0.0015
_TURNS: Final = (0.0, 0.3, -0.3, 0.6, -0.6)
_QUARTER: Final = np.pi / 2


def choose_grasp(
    source: ObjectSpec, neighbours: tuple[ObjectSpec, ...], state: dict[str, Any], yaw: float, lowest: float
) -> tuple[Float[np.ndarray, "3"], float]:
    """Returns the end-effector position [m] and the gripper yaw [rad] of the grasp of `source`.

    Args:
        source: Object to grasp.
        neighbours: The scene's other objects.
        state: Privileged state of the environment.
        yaw: Present gripper yaw; among equivalent grasps the nearest is taken [rad].
        lowest: Smallest height allowed for the end-effector [m].

    Returns:
        Position and yaw. Without a free grasp, those of the first choice.
    """
    origin: NDArray[np.float64] = state[f"{source.name}.position"]
    heading = float(state[f"{source.name}.yaw"][0])
    half = source.symmetry / 2
    across = yaw + (heading - yaw + half) % source.symmetry - half
    height = max(float(origin[2]) + source.grasp_height, lowest)
    obstacles = _obstacles(neighbours, state, height - _FINGER_BELOW)
    turns = (*_TURNS, _QUARTER, -_QUARTER) if source.symmetry < np.pi else _TURNS
    candidates = sorted(
        product((0.0, *source.grasp_shifts), turns), key=lambda pair: abs(pair[0]) / 0.012 + abs(pair[1]) / 0.3
    )
    for shift, turn in candidates:
        point = origin[:2] + shift * np.array([np.cos(heading), np.sin(heading)])
        if _is_free(point, across + turn, obstacles):
            return np.array([*point, height]), across + turn
    return np.array([*origin[:2], height]), across


def _obstacles(
    neighbours: tuple[ObjectSpec, ...], state: dict[str, Any], height: float
) -> Float[np.ndarray, "discs 3"]:
    """Returns the discs (x, y, radius) of everything that reaches above `height` [m]."""
    discs: list[NDArray[np.float64]] = [np.empty((0, 3))]
    for spec in neighbours:
        position = state[f"{spec.name}.position"]
        if position[2] + spec.top_height > height:
            yaw = float(state[f"{spec.name}.yaw"][0])
            turn = np.array([[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]])
            outline = np.array(spec.outline)
            discs.append(np.column_stack([outline[:, :2] @ turn.T + position[:2], outline[:, 2]]))
    return np.concatenate(discs)


def _is_free(point: Float[np.ndarray, "2"], yaw: float, obstacles: Float[np.ndarray, "discs 3"]) -> bool:
    """Whether both opened fingers at `point` [m] keep clear of the obstacles."""
    axis = np.array([-np.sin(yaw), np.cos(yaw)])
    for side in (-FINGER_OPEN, FINGER_OPEN):
        gaps = np.linalg.norm(obstacles[:, :2] - (point + side * axis), axis=1) - obstacles[:, 2]
        if gaps.size and gaps.min() < _FINGER_RADIUS + _MARGIN:
            return False
    return True
