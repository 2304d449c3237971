"""A scripted expert for SimplerEnv's WidowX tasks.

It is a function of the present state alone: which phase an episode is in follows from geometry (is the source above
the target? is it held? is the hand above it?), never from memory. It therefore recovers from whatever another
controller left behind. Everything is grasped from above, across its long side.

It sees privileged state and plans no path round obstacles: it travels high and comes down straight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float, Float32
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from daptq.environments.kinematics import euler_from_matrix
from daptq.environments.simpler import SimplerEnvironment
from daptq.environments.simpler.tasks import TASKS

__all__ = ["SimplerExpert"]


@dataclass(frozen=True, kw_only=True)
class Heights:
    """How high things are done, for one task [m].

    Attributes:
        grasp: End-effector above the source's origin when the fingers close.
        held_up: How far above that it may still be, held up by the wall of the sink.
        release: Source's origin above the target's origin when they open.
        travel: Source's origin above the target's origin on the way.
        aim: Horizontal error within which the source is lowered.
    """

    grasp: float
    held_up: float = 0.006
    release: float
    travel: float
    aim: float


_HEIGHTS: Final[Mapping[str, Heights]] = {
    "spoon_on_towel": Heights(grasp=0.005, release=0.020, travel=0.07, aim=0.02),
    "carrot_on_plate": Heights(grasp=0.005, release=0.030, travel=0.08, aim=0.02),
    "stack_blocks": Heights(grasp=-0.005, release=0.030, travel=0.08, aim=0.006),
    "eggplant_in_basket": Heights(grasp=0.005, held_up=0.02, release=0.05, travel=0.13, aim=0.02),
}
_MAX_STEP: Final = 0.035  # m per control step
_MAX_TURN: Final = 0.3  # rad per control step
_GAIN: Final = 0.8
_HOVER: Final = 0.07  # height above a grasp at which the gripper travels [m]
_GRASP_RADIUS: Final = 0.008  # m
_COMMAND_ERROR: Final = 0.0015  # m
_GRASP_TURN: Final = 0.12  # rad
_RELEASE_HEIGHT_ERROR: Final = 0.003  # m
_OPEN_ENOUGH: Final = 0.9
_CLOSED_ON_NOTHING: Final = 0.05
_RETREAT: Final = 0.09


class SimplerExpert:
    """Scripted expert: `action(environment)` is the action for the environment's present state and asked task."""

    def action(self, environment: SimplerEnvironment) -> Float32[np.ndarray, "7"]:
        """Returns the action (float32, see `SimplerEnvironment`) for the present state of `environment`."""
        task, heights, world = TASKS[environment.task], _HEIGHTS[environment.task], environment.world
        commanded, rotation = environment.commanded_pose
        hand, _ = world.end_effector()
        yaw = float(euler_from_matrix(rotation)[2])
        source, turned = world.object_pose(task.source)
        target, _ = world.object_pose(task.target)
        opening = world.gripper_opening
        if world.holds(task.source):
            goal, open_gripper = carry(commanded, source - hand, source, target, heights)
        elif _placed(source, target, heights):
            goal, open_gripper = commanded.copy(), True
            if opening > _OPEN_ENOUGH:
                goal[2] = max(commanded[2], source[2] + _RETREAT)
        else:
            along = turned[:2, 0]
            turn = _wrapped(float(np.arctan2(along[1], along[0])) - yaw)
            if task.name == "stack_blocks":
                turn = (turn + np.pi / 4) % (np.pi / 2) - np.pi / 4
            grasp = source + np.array([0.0, 0.0, heights.grasp])
            goal, open_gripper = reach(commanded, hand, grasp, turn, opening, heights.held_up)
            yaw += turn
        return towards(commanded, rotation, goal, yaw, open_gripper)


def _wrapped(angle: float) -> float:
    """The gripper is the same after half a turn: an angle in [-pi/2, pi/2) [rad]."""
    return (angle + np.pi / 2) % np.pi - np.pi / 2


def _placed(source: Float[np.ndarray, "3"], target: Float[np.ndarray, "3"], heights: Heights) -> bool:
    """Whether the source lies where it belongs."""
    near = float(np.linalg.norm(source[:2] - target[:2])) < 2.5 * heights.aim
    return bool(near and source[2] < target[2] + heights.release + 0.01)


def carry(
    commanded: Float[np.ndarray, "3"],
    grip: Float[np.ndarray, "3"],
    source: Float[np.ndarray, "3"],
    target: Float[np.ndarray, "3"],
    heights: Heights,
) -> tuple[Float[np.ndarray, "3"], bool]:
    """The source is held, `grip` off the end-effector: lift it, bring it above the target, lower it, let go."""
    error = float(np.linalg.norm(target[:2] - source[:2]))
    height = float(source[2] - target[2])
    goal = target - grip
    if error < heights.aim:
        if height < heights.release + _RELEASE_HEIGHT_ERROR:
            return commanded, True
        goal[2] += heights.release
    else:
        goal[2] += heights.travel
        if height < heights.travel - 0.02:  # first up, so that the source clears the target
            goal[:2] = commanded[:2]
    return goal, False


def reach(
    commanded: Float[np.ndarray, "3"],
    hand: Float[np.ndarray, "3"],
    grasp: Float[np.ndarray, "3"],
    turn: float,
    opening: float,
    held_up: float,
) -> tuple[Float[np.ndarray, "3"], bool]:
    """The source is neither placed nor held: open, come above the grasp, descend, close."""
    goal: NDArray[np.float64] = grasp.copy()
    error = float(np.linalg.norm(hand[:2] - grasp[:2]))
    aligned = error < _GRASP_RADIUS and abs(turn) < _GRASP_TURN
    if aligned and commanded[2] < grasp[2] + _COMMAND_ERROR and hand[2] < grasp[2] + held_up:
        # A finger that touches first pushes the source aside: the hand follows, so that the other one reaches it, too.
        closing = commanded.copy()
        closing[:2] += grasp[:2] - hand[:2]
        return closing, opening < _CLOSED_ON_NOTHING
    if not aligned or opening < _OPEN_ENOUGH:
        goal[2] += _HOVER
        if hand[2] < grasp[2] + _HOVER / 2:  # first up, so that the fingers do not sweep the table
            goal[:2] = commanded[:2]
    return goal, True


def towards(
    commanded: Float[np.ndarray, "3"],
    rotation: Float[np.ndarray, "3 3"],
    goal: Float[np.ndarray, "3"],
    yaw: float,
    open_gripper: bool,
) -> Float32[np.ndarray, "7"]:
    """Returns a limited proportional step from the commanded pose to `goal` [m] and a level gripper at `yaw` [rad]."""
    move: NDArray[np.float64] = goal - commanded
    distance = float(np.linalg.norm(move))
    if distance > 0.001:
        move *= min(_GAIN, _MAX_STEP / distance)
    turn = (Rotation.from_euler("z", yaw) * Rotation.from_matrix(rotation).inv()).as_rotvec()
    angle = float(np.linalg.norm(turn))
    if angle > 0.01:
        turn *= min(_GAIN, _MAX_TURN / angle)
    angles = euler_from_matrix(Rotation.from_rotvec(turn).as_matrix())
    return np.concatenate([move, angles, [1.0 if open_gripper else -1.0]], dtype=np.float32)
