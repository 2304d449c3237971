"""LIBERO's suites libero_object and libero_spatial: a Panda arm, twenty tasks, fifty official initial states each.

Needs the extra `libero`, in an environment of its own: its pins exclude the versions that the rest is locked to.
`docs/reference/libero.md` says how LIBERO's conventions are mapped to those of `Environment`.

What it does not know: the other suites, LIBERO's demonstrations, the perturbations of LIBERO-PRO.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final

import numpy as np
from jaxtyping import Float, Float32
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from daptq.environments._rendering import CameraRenderer
from daptq.environments._task_environment import PICTURE_SIZE, TaskEnvironment, refused_state, state_numbers
from daptq.environments.contract import Info, Observation
from daptq.environments.kinematics import matrix_from_euler
from daptq.environments.libero.tasks import TASKS
from daptq.environments.libero.world import CONTROL_FREQUENCY, MAX_IMAGE_SIZE, LiberoWorld, require_libero
from daptq.observations import STATE, CameraSize, ImageSizes, camera_key

__all__ = ["TASKS", "LiberoEnvironment", "make", "native_action"]

_CAMERAS: Final = {"front": "agentview", "wrist": "robot0_eye_in_hand"}
_MAX_DELTA: Final = np.array([0.05, 0.05, 0.05, 0.5, 0.5, 0.5])  # what the controller makes of an input of 1
_COLLISION_GROUP: Final = 0
_HEADER: Final = 4


def native_action(action: Float[np.ndarray, "7"]) -> Float[np.ndarray, "7"]:
    """Returns LIBERO's action for an action of `LiberoEnvironment`.

    Args:
        action: Position change [m], intrinsic XYZ Euler angles [rad] and gripper (positive opens), float64.

    Returns:
        Position change in units of 0.05 m and rotation vector in units of 0.5 rad, each number limited to [-1, 1],
        and the gripper: -1 opens, +1 closes.
    """
    turn = Rotation.from_matrix(matrix_from_euler(action[3:6])).as_rotvec()
    scaled = np.clip(np.concatenate([action[:3], turn]) / _MAX_DELTA, -1.0, 1.0)
    return np.append(scaled, -1.0 if action[6] > 0 else 1.0)


class LiberoEnvironment(TaskEnvironment):
    """LIBERO with the contract of `Environment`.

    Actions (float32, 7) are position change [m], rotation change as intrinsic XYZ Euler angles [rad], both in the base
    frame and added to the *measured* pose, as LIBERO's controller does, and the gripper's sign (+1 open, -1 closed).
    Changes beyond 0.05 m or 0.5 rad a step are clipped.

    `observation.state` is float32 (8,) as LIBERO's policies know it: end-effector position in LIBERO's world frame [m],
    axis-angle of the hand [rad], two finger positions [m]. Pictures are upright, `front` from LIBERO's agentview,
    `wrist` from its eye-in-hand camera.

    The seed chooses the initial state: row `seed` modulo their number, which is 50. Ten control steps that open the
    gripper and change nothing else let the scene settle before the first observation.

    Args:
        task: Task asked when `reset` names none.
        image_size: Size of each camera's picture, see `daptq.observations.ImageSizes`; cameras left out are not
            rendered.
        horizon: Steps until truncation.

    Raises:
        MissingDependencyError: If the extra `libero` is not installed.
        InvalidInputError: If a task, camera, size or horizon is not usable.
    """

    tasks: ClassVar[tuple[str, ...]] = tuple(TASKS)
    control_frequency: ClassVar[float] = CONTROL_FREQUENCY

    def __init__(
        self,
        task: str = next(iter(TASKS)),
        *,
        image_size: ImageSizes | None = None,
        horizon: int = 280,
    ) -> None:
        super().__init__(
            task,
            image_size=image_size,
            cameras=dict.fromkeys(_CAMERAS, 128),
            largest_image=MAX_IMAGE_SIZE,
            horizon=horizon,
            state_size=8,
            largest_move=_MAX_DELTA,
        )
        require_libero()
        self.horizon = horizon
        self._built: tuple[str, LiberoWorld] | None = None
        self._renderer: CameraRenderer | None = None
        self._step = 0
        self._ever = False

    def initial_states_of(self, task: str) -> int:
        """Returns the number of official initial states of `task`."""
        return TASKS[task].initial_states

    @property
    def instruction(self) -> str:
        """The instruction that the policy reads."""
        return TASKS[self._task].instruction

    @property
    def world(self) -> LiberoWorld:
        """Physics of the asked task; only the last one is kept, since each takes seconds to build and much memory."""
        if self._built is None or self._built[0] != self._task:
            self.close()
            self._built = (self._task, LiberoWorld(TASKS[self._task]))
        return self._built[1]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, Info]:
        """Starts an episode.

        Args:
            seed: Chooses the official initial state. None draws one.
            options: `{"task": name}` chooses the task; without it the constructor's task is asked.

        Returns:
            Observation and info.

        Raises:
            InvalidInputError: If the task or an option is unknown or the seed is negative.
        """
        self._start(seed, options)
        self.world.reset(self._seed % len(self.world.initial_states))
        self._step = 0
        self._ever = False
        self._ready = True
        return self.observe(), self._info()

    def advance(self, action: Float32[np.ndarray, "7"]) -> Info:
        """Runs one control step of 0.05 s without drawing a picture.

        Args:
            action: See the class.

        Raises:
            InvalidInputError: If the action is not 7 finite numbers, or `reset` was not called.
        """
        self.world.advance(native_action(self._checked(action)))
        self._step += 1
        self._ever |= self.world.succeeds()
        return self._info()

    def observe(self) -> Observation:
        """Returns the present observation; it renders every chosen camera."""
        observation: Observation = {
            camera_key(camera): self._picture(camera, size) for camera, size in self.image_size.items()
        }
        observation[STATE] = self.world.proprioception().astype(np.float32)
        return observation

    def render(self) -> NDArray[np.uint8]:
        """Returns a 384 x 384 picture of the front camera."""
        return self._picture("front", PICTURE_SIZE)

    def _picture(self, camera: str, size: CameraSize) -> NDArray[np.uint8]:
        world = self.world
        if self._renderer is None:
            self._renderer = CameraRenderer(world.model, self._largest_edge(), hidden_group=_COLLISION_GROUP)
        return self._renderer.render(world.data, _CAMERAS[camera], size)

    def privileged_state(self) -> dict[str, Any]:
        """Returns what no camera tells.

        Returns:
            `<object>.position` float64 (3,) [m] for every movable object of the scene, `end_effector.position` float64
            (3,) [m] and `end_effector.rotation` float64 (3, 3), all in the base frame, `gripper_opening` float64 (1,)
            in [0, 1], and `held`, the name of the object between the fingers or None.
        """
        world = self.world
        state: dict[str, Any] = {f"{name}.position": world.position(name) for name in world.objects}
        state["end_effector.position"], state["end_effector.rotation"] = world.end_effector()
        state["gripper_opening"] = np.array([world.gripper_opening])
        state["held"] = world.held()
        return state

    def _info(self) -> Info:
        return self._info_after(self._step, self.world.end_effector(), {self._task: self.world.succeeds()}, self._ever)

    def get_state(self) -> Float[np.ndarray, " state"]:
        """Returns the full state: task, seed, step, success flag, and the world's state."""
        head = [self.tasks.index(self._task), self._seed, self._step, float(self._ever)]
        return np.concatenate([np.array(head, dtype=np.float64), self.world.get_state()])

    def set_state(self, state: Float[np.ndarray, " state"]) -> tuple[Observation, Info]:
        """Restores a state of `get_state`, of this or another instance; the episode goes on bit-identically.

        Raises:
            InvalidInputError: If `state` is not such an array.
        """
        values = state_numbers(state, _HEADER, self.tasks)
        previous, self._task = self._task, self.tasks[int(values[0])]
        if values.size - _HEADER != self.world.get_state().size:
            self._task = previous
            raise refused_state(f"{values.size} numbers")
        self._seed, self._step, self._ever = int(values[1]), int(values[2]), bool(values[3])
        self._ready = True
        self.world.set_state(values[_HEADER:])
        return self.observe(), self._info()

    def close(self) -> None:
        """Frees the graphics context."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None


def make(*, image_size: ImageSizes | None = None, horizon: int = 280) -> LiberoEnvironment:
    """Returns the environment; what the catalog calls. See `LiberoEnvironment` for the arguments."""
    return LiberoEnvironment(image_size=image_size, horizon=horizon)
