"""A scripted expert for LIBERO's pick-and-place tasks.

It is a function of the present state alone: which phase an episode is in follows from geometry (is the source above
the target? is it held? is the hand above it?), never from memory. Groceries are grasped across their narrow side; a
bowl, wider than the gripper opens, by its rim.

It sees privileged state and plans no path round obstacles: it travels high and comes down straight.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from jaxtyping import Float, Float32
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from daptq.environments.kinematics import euler_from_matrix
from daptq.environments.libero import LiberoEnvironment
from daptq.environments.libero.tasks import TASKS

__all__ = ["LiberoExpert"]

_GAIN: Final = 2.5  # the controller lags behind a step that starts from the measured pose
_TURN_GAIN: Final = 2.0
_MAX_STEP: Final = 0.05  # m per control step
_MAX_TURN: Final = 0.3  # rad per control step
_MAX_OPENING: Final = 0.072  # widest object that the fingers take between them [m]
_FINGER_DEPTH: Final = 0.03  # how far below an object's top the fingertips reach [m]
_MIN_HEIGHT: Final = 0.008  # height of the fingertips above the object's bottom [m]
_RIM_INSET: Final = 0.004  # m
_RIM_DEPTH: Final = 0.018  # how far below a rim the fingertips reach [m]
_OUTER_FINGER: Final = 0.045  # distance of the finger outside a bowl from its rim [m]
_FINGER_RADIUS: Final = 0.015  # m
_HOVER: Final = 0.08
_CARRY_HEIGHT: Final = (0.04, 0.12)  # the source's bottom above its release while it travels: basket, plate [m]
_DEEP: Final = 0.05  # height from which a target is a basket [m]
_BASKET_RADIUS: Final = 0.06  # m
_RELEASE_CLEARANCE: Final = 0.02
_GRASP_RADIUS: Final = 0.010
_RELEASE_RADIUS: Final = 0.02
_OPEN_ENOUGH: Final = 0.94
_CLOSED_ON_NOTHING: Final = 0.1
_SLIDE: Final = 0.035  # how far an object may slide while the fingers close [m]
_YAWS: Final = np.linspace(-np.pi / 2, np.pi / 2, 36, endpoint=False)


class LiberoExpert:
    """Scripted expert: `action(environment)` is the action for the environment's present state and asked task."""

    def action(self, environment: LiberoEnvironment) -> Float32[np.ndarray, "7"]:
        """Returns the action (float32, see `LiberoEnvironment`) for the present state of `environment`."""
        task, world = TASKS[environment.task], environment.world
        hand, rotation = world.end_effector()
        source, target = world.points(task.source), world.points(task.target)
        yaw = float(np.arctan2(*_fingers_axis(rotation)[::-1]))
        held = world.held()
        opened = world.gripper_opening >= _OPEN_ENOUGH
        if _delivered(source, target):
            goal, open_gripper = _raised(hand, _MAX_STEP if opened else 0.0), True
        elif held == task.source and not opened:
            goal, open_gripper = _carry(hand, source, target), False
        elif held is not None:
            goal, open_gripper = _raised(hand, _MAX_STEP), True
        else:
            others = [world.points(name) for name in world.objects if name != task.source]
            grasp, wanted = _grasp(source, target, others, yaw)
            goal, open_gripper = _reach(hand, grasp, _wrapped(wanted - yaw), world.gripper_opening)
            yaw += _wrapped(wanted - yaw)
        return _towards(hand, rotation, goal, yaw, open_gripper)


def _raised(point: Float[np.ndarray, "3"], height: float) -> Float[np.ndarray, "3"]:
    return point + np.array([0.0, 0.0, height])


def _wrapped(angle: float) -> float:
    """The gripper is the same after half a turn: an angle in [-pi/2, pi/2) [rad]."""
    return (angle + np.pi / 2) % np.pi - np.pi / 2


def _fingers_axis(rotation: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "2"]:
    """Horizontal direction of the fingers' travel."""
    return rotation[:2, 0]


def _middle(points: Float[np.ndarray, "points 3"]) -> Float[np.ndarray, "3"]:
    return (points.min(axis=0) + points.max(axis=0)) / 2


def _grasp(
    source: Float[np.ndarray, "points 3"],
    target: Float[np.ndarray, "points 3"],
    others: list[NDArray[np.float64]],
    yaw: float,
) -> tuple[Float[np.ndarray, "3"], float]:
    """Returns the grasp's position [m] and the direction of the fingers' travel [rad]."""
    middle, bottom, top = _middle(source), source[:, 2].min(), source[:, 2].max()
    directions = np.stack([np.cos(_YAWS), np.sin(_YAWS)], axis=1)
    along = source[:, :2] @ directions.T
    widths = along.max(axis=0) - along.min(axis=0)
    if widths.min() <= _MAX_OPENING:
        # Among directions that are nearly as narrow as the narrowest, the one that needs the least turn.
        turns = np.abs([_wrapped(angle - yaw) for angle in _YAWS])
        best = int(np.argmin(np.where(widths <= widths.min() + 0.004, turns, np.inf)))
        return np.array([*middle[:2], max(top - _FINGER_DEPTH, bottom + _MIN_HEIGHT)]), float(_YAWS[best])
    radius = float(np.ptp(source[:, :2], axis=0).min()) / 2
    side = np.array([0.0, np.sign(_middle(target)[1] - middle[1]) or 1.0])
    if not _is_free(middle[:2] + (radius + _OUTER_FINGER) * side, others):
        side = -side
    return np.array([*(middle[:2] + (radius - _RIM_INSET) * side), top - _RIM_DEPTH]), np.pi / 2


def _is_free(point: Float[np.ndarray, "2"], others: list[NDArray[np.float64]]) -> bool:
    """Whether a finger that comes down at `point` misses the other objects, taken as discs seen from above."""
    return all(
        np.linalg.norm(point - _middle(other)[:2]) > np.ptp(other[:, :2], axis=0).max() / 2 + _FINGER_RADIUS
        for other in others
    )


def _reach(
    hand: Float[np.ndarray, "3"], grasp: Float[np.ndarray, "3"], turn: float, opening: float
) -> tuple[Float[np.ndarray, "3"], bool]:
    """Open, come above the grasp, descend, close."""
    error = float(np.linalg.norm(hand[:2] - grasp[:2]))
    aligned = error < _GRASP_RADIUS and abs(turn) < 0.1
    closing = _CLOSED_ON_NOTHING < opening < _OPEN_ENOUGH and error < _SLIDE
    if (aligned or closing) and hand[2] < grasp[2] + 0.012:
        return np.array([hand[0], hand[1], grasp[2]]), opening < _CLOSED_ON_NOTHING
    above = _raised(grasp, 0.0 if aligned and opening > _OPEN_ENOUGH else _HOVER)
    if not aligned and hand[2] < grasp[2] + _HOVER / 2:
        above[:2] = hand[:2]  # first up, so that the fingers do not sweep what stands there
    return above, True


def _release_height(target: Float[np.ndarray, "points 3"]) -> float:
    """Height of the source's bottom at which to let go [m]: above the rim of a basket, just above a plate."""
    rim, floor = float(target[:, 2].max()), float(target[:, 2].min())
    return rim + _RELEASE_CLEARANCE / 2 if rim - floor > _DEEP else floor + _RELEASE_CLEARANCE


def _delivered(source: Float[np.ndarray, "points 3"], target: Float[np.ndarray, "points 3"]) -> bool:
    """Whether the source is above the target and low enough to let go, or already there."""
    offset = _middle(target)[:2] - _middle(source)[:2]
    reach = _BASKET_RADIUS if source[:, 2].min() < target[:, 2].max() and np.ptp(target[:, 2]) > _DEEP else 0.0
    close = float(np.linalg.norm(offset)) < max(_RELEASE_RADIUS, reach)
    return bool(close and source[:, 2].min() < _release_height(target) + 0.01)


def _carry(
    hand: Float[np.ndarray, "3"], source: Float[np.ndarray, "points 3"], target: Float[np.ndarray, "points 3"]
) -> Float[np.ndarray, "3"]:
    """Lift the source, bring it above the target, lower it."""
    bottom, release = source[:, 2].min(), _release_height(target)
    travel = release + _CARRY_HEIGHT[int(np.ptp(target[:, 2]) <= _DEEP)]
    offset = _middle(target)[:2] - _middle(source)[:2]
    error = float(np.linalg.norm(offset))
    if error < _RELEASE_RADIUS:
        move = [*offset, release - bottom]
    elif error < 2 * _RELEASE_RADIUS:  # neither lower nor higher: going back up would start a cycle
        move = [*offset, 0.0]
    elif bottom > travel - 0.03:
        move = [*offset, travel - bottom]
    else:  # first up, so that the source clears what stands there
        move = [0.0, 0.0, travel - bottom]
    return hand + move


def _towards(
    hand: Float[np.ndarray, "3"],
    rotation: Float[np.ndarray, "3 3"],
    goal: Float[np.ndarray, "3"],
    yaw: float,
    open_gripper: bool,
) -> Float32[np.ndarray, "7"]:
    """Returns a limited proportional step to `goal` [m] and a level gripper whose fingers travel along `yaw` [rad]."""
    move = _GAIN * (goal - hand)
    move *= min(1.0, _MAX_STEP / max(float(np.abs(move).max()), 1e-9))
    travel = np.array([np.cos(yaw), np.sin(yaw), 0.0])
    down = np.array([0.0, 0.0, -1.0])
    wanted = np.stack([travel, np.cross(down, travel), down], axis=1)
    turn = _TURN_GAIN * Rotation.from_matrix(wanted @ rotation.T).as_rotvec()
    turn *= min(1.0, _MAX_TURN / max(float(np.linalg.norm(turn)), 1e-9))
    angles = euler_from_matrix(Rotation.from_rotvec(turn).as_matrix())
    return np.concatenate([move, angles, [1.0 if open_gripper else -1.0]], dtype=np.float32)
