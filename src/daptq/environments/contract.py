"""The contract of a benchmark environment.

An environment follows Gymnasium and adds what paired, resumable, closed-loop evaluation needs: named tasks with an
instruction, the full state as one array, the arm's kinematics, and a success flag for every task of the scene. Episodes
never terminate on success: both "ever successful" and "successful at the last step" can then be recorded.

A module of an environment offers `make` and `TASKS`. The sizes that `make(image_size=...)` takes are those of
`daptq.observations.ImageSizes`: cameras by short name or full key, square or rectangular pictures. A module with
variants also offers `VARIANTS`, a mapping from each name to something with a `description`, and `make(variant=name)`: a
variant changes one thing about the scene, the sensors or the motors, and no initial state.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import gymnasium
import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from daptq.action_space import END_EFFECTOR_DELTA, ActionSpace
from daptq.observations import STATE

__all__ = ["Environment", "Info", "Observation"]

Observation = dict[str, Any]
Info = dict[str, Any]


class Environment(gymnasium.Env[Observation, NDArray[np.float32]]):
    """A manipulation benchmark with named tasks.

    Observations are a dictionary with LeRobot's keys: `observation.images.<camera>`, uint8 (height, width, 3), and
    `observation.state`, float32. Actions are float32, one number for each of `action_dimensions`. By default these are
    7: position change of the commanded end-effector pose in the base frame [m], rotation change in the base frame as
    intrinsic XYZ Euler angles [rad], and the gripper. A gripper's sign decides: positive opens, negative closes.

    Every `info` holds `task` (the instruction), `success` (asked task, this step), `success_any_step` (asked task, this
    episode), `success_by_task` (every task of the scene, this step), `end_effector_position` float64 (3,) [m],
    `end_effector_rotation` float64 (3, 3), `step_index` and `seed`.

    Attributes:
        action_dimensions: What the numbers of an action mean; a policy whose action space is another one is not run.
            (Gymnasium's `action_space` says in which range they are.)
        tasks: Names of the tasks; `reset(options={"task": name})` chooses one.
        control_frequency: Control steps per second [Hz].
        horizon: Steps after which an episode is truncated; `advance` goes on beyond it when asked to, since the drift
            from a state late in an episode is measured that way.
    """

    action_dimensions: ClassVar[ActionSpace] = END_EFFECTOR_DELTA
    tasks: ClassVar[tuple[str, ...]]
    control_frequency: ClassVar[float]
    horizon: int

    @property
    def state_dim(self) -> int:
        """Numbers of `observation.state`."""
        return int(self.observation_space[STATE].shape[0])  # type: ignore[index]

    @property
    @abstractmethod
    def task(self) -> str:
        """Name of the asked task."""

    @property
    @abstractmethod
    def instruction(self) -> str:
        """The instruction that the policy reads."""

    @property
    @abstractmethod
    def joint_positions(self) -> Float[np.ndarray, " joints"]:
        """Measured joint positions of the arm [rad], float64."""

    @abstractmethod
    def forward_kinematics(
        self, joint_positions: Float[np.ndarray, " joints"]
    ) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3 3"]]:
        """Returns the end-effector's position [m] and rotation matrix in the base frame at `joint_positions` [rad]."""

    @abstractmethod
    def jacobian(self) -> Float[np.ndarray, "6 joints"]:
        """Returns the manipulator Jacobian at the present joint positions, float64, in the base frame.

        Rows 0-2: end-effector position per joint [m/rad]; rows 3-5: its rotation vector per joint [rad/rad].
        """

    def horizon_of(self, task: str) -> int:
        """Returns the steps after which an episode of `task` is truncated."""
        del task  # only a benchmark whose tasks differ has to look at it
        return self.horizon

    def initial_states_of(self, task: str) -> int | None:
        """Returns how many fixed initial states `task` has; seeds choose them in turn, row `seed` modulo their number.

        None where every seed has an initial state of its own.
        """
        del task  # only a benchmark with fixed initial states has to look at it
        return None

    @abstractmethod
    def advance(self, action: Float[np.ndarray, " action"]) -> Info:
        """Runs one control step without drawing a picture, for a policy that looks once per chunk; returns its info."""

    @abstractmethod
    def observe(self) -> Observation:
        """Returns the present observation; looking changes nothing."""

    def step(self, action: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, Info]:
        """Runs one control step and looks: `advance`, then `observe`.

        Returns:
            Observation, reward (1.0 while the asked task succeeds), terminated (always False), truncated, info.

        Raises:
            InvalidInputError: The action is not a finite number for each dimension, or `reset` was not called.
        """
        info = self.advance(action)
        return self.observe(), float(info["success"]), False, info["step_index"] >= self.horizon_of(self.task), info

    @abstractmethod
    def privileged_state(self) -> dict[str, Any]:
        """Returns what no camera tells: object poses, end-effector pose, gripper opening.

        Under `held` it names the object between the fingers, or None.
        """

    @abstractmethod
    def get_state(self) -> Float[np.ndarray, " state"]:
        """Returns the full state as one flat float64 array."""

    @abstractmethod
    def set_state(self, state: Float[np.ndarray, " state"]) -> tuple[Observation, Info]:
        """Restores a state of `get_state`, of this or another instance; the episode goes on bit-identically."""
