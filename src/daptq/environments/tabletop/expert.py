"""A scripted expert for the tabletop tasks.

It is a function of the present state alone: which phase an episode is in follows from geometry (is the source where it
belongs? held? is the gripper above it?), never from memory. It therefore recovers from whatever another controller left
behind, and can label states that a learned policy visited. Phases hand over through funnels that widen with height, so
that small errors do not send it back and forth.

It sees privileged state and plans no path round obstacles: it travels high and comes down straight.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from jaxtyping import Float, Float32
from numpy.typing import NDArray

from daptq.environments.kinematics import euler_from_matrix, matrix_from_euler
from daptq.environments.tabletop import TabletopEnvironment
from daptq.environments.tabletop.grasps import choose_grasp
from daptq.environments.tabletop.objects import TaskSpec

__all__ = ["TabletopExpert"]

_MAX_STEP: Final = 0.035  # m per control step
_MAX_TURN: Final = 0.25  # rad per control step
_GAIN: Final = 0.8
_SNAP: Final = 0.001  # errors below this are closed in one step [m]
_HOVER: Final = 0.08  # height above a grasp or a release at which the gripper travels [m]
_RETREAT_HEIGHT: Final = 0.09
_MIN_HEIGHT: Final = 0.024  # end-effector height with the fingertips just above the table [m]
_GRASP_RADIUS: Final = 0.008
_GRASP_HEIGHT_ERROR: Final = 0.008
_GRASP_YAW_ERROR: Final = 0.15
_FUNNEL_SLOPE: Final = 2.5  # height gained per metre of horizontal error outside the funnel's neck
_OPEN_ENOUGH: Final = 0.7
_CLOSED_ON_NOTHING: Final = 0.03


class TabletopExpert:
    """Scripted expert: `action(environment)` is the action for the environment's present state and asked task."""

    def action(self, environment: TabletopEnvironment) -> Float32[np.ndarray, "7"]:
        """Returns the action (float32, see `TabletopEnvironment`) for the present state of `environment`."""
        task = environment.world.tasks[environment.task]
        state = environment.privileged_state()
        position, rotation = environment.commanded_pose
        yaw = float(euler_from_matrix(rotation)[2])
        if state["held"] == task.source:
            goal, open_gripper = self._carry(task, state, position)
        elif environment.world.rests(task):
            goal, open_gripper = self._retreat(task, state, position)
        elif state["held"] is not None:
            goal, open_gripper = position, True
        else:
            objects = environment.world.objects
            source = next(spec for spec in objects if spec.name == task.source)
            others = tuple(spec for spec in objects if spec.name != task.source)
            grasp, wanted = choose_grasp(source, others, state, yaw, _MIN_HEIGHT)
            goal, open_gripper = self._reach(grasp, wanted - yaw, state, position)
            yaw = wanted
        return _towards(position, rotation, goal, yaw, open_gripper)

    @staticmethod
    def _carry(
        task: TaskSpec, state: dict[str, Any], position: Float[np.ndarray, "3"]
    ) -> tuple[Float[np.ndarray, "3"], bool]:
        """The source is in the gripper: lift it, bring it above the target, lower it, let go."""
        source, target = state[f"{task.source}.position"], state[f"{task.target}.position"]
        grip = source - state["end_effector.position"]
        release = target[2] + task.release_height
        error = float(np.linalg.norm(source[:2] - target[:2]))
        if error < task.aim_tolerance and source[2] < release + 0.005:
            return position, True
        outside = max(0.0, error - 0.7 * task.aim_tolerance)
        height = release + min(_HOVER, _FUNNEL_SLOPE * outside)
        goal = target - grip
        goal[2] = height - grip[2]
        low = source[2] < target[2] + task.release_height + 0.4 * min(_HOVER, _FUNNEL_SLOPE * outside)
        if low and error > 0.03:  # first up, so that the source clears the target and the table
            goal[:2] = position[:2]
        return goal, False

    @staticmethod
    def _retreat(
        task: TaskSpec, state: dict[str, Any], position: Float[np.ndarray, "3"]
    ) -> tuple[Float[np.ndarray, "3"], bool]:
        """The source is where it belongs: open, go straight up, stay."""
        source = state[f"{task.source}.position"]
        goal = position.copy()
        if state["gripper_opening"][0] >= _OPEN_ENOUGH:
            goal[2] = max(position[2], source[2] + _RETREAT_HEIGHT)
        return goal, True

    @staticmethod
    def _reach(
        grasp: Float[np.ndarray, "3"], turn: float, state: dict[str, Any], position: Float[np.ndarray, "3"]
    ) -> tuple[Float[np.ndarray, "3"], bool]:
        """The source is neither placed nor held: open, come above the grasp, descend, close."""
        hand = state["end_effector.position"]
        opening = float(state["gripper_opening"][0])
        goal = grasp.copy()
        error = float(np.linalg.norm(hand[:2] - goal[:2]))
        turn = abs(turn)
        aligned = error < _GRASP_RADIUS and turn < _GRASP_YAW_ERROR
        if aligned and abs(hand[2] - goal[2]) < _GRASP_HEIGHT_ERROR:
            return position, opening < _CLOSED_ON_NOTHING
        if opening < _OPEN_ENOUGH and hand[2] < goal[2] + 0.5 * _HOVER:
            goal = position.copy()
            goal[2] += 0.02
            return goal, True
        outside = max(0.0, error - 0.6 * _GRASP_RADIUS, 0.05 * (turn - 0.1))
        rise = min(_HOVER, _FUNNEL_SLOPE * outside)
        low = hand[2] < goal[2] + 0.5 * rise
        goal[2] += rise
        if low and error > 0.02:  # first up, so that the fingers do not sweep the table
            goal[:2] = position[:2]
        return goal, True


def _towards(
    position: Float[np.ndarray, "3"],
    rotation: Float[np.ndarray, "3 3"],
    goal: Float[np.ndarray, "3"],
    yaw: float,
    open_gripper: bool,
) -> Float32[np.ndarray, "7"]:
    """Returns a limited proportional step from the commanded pose to `goal` [m] and a level gripper at `yaw` [rad]."""
    move: NDArray[np.float64] = goal - position
    distance = float(np.linalg.norm(move))
    if distance > _SNAP:
        move *= min(_GAIN, _MAX_STEP / distance)
    turn = euler_from_matrix(matrix_from_euler(np.array([0.0, 0.0, yaw])) @ rotation.T)
    angle = float(np.linalg.norm(turn))
    if angle > 0.01:
        turn *= min(_GAIN, _MAX_TURN / angle)
    return np.concatenate([move, turn, [1.0 if open_gripper else -1.0]], dtype=np.float32)
