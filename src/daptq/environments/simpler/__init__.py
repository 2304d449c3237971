"""SimplerEnv's four WidowX tasks, the benchmark of DA-PTQ, through ManiSkill 3.

Needs the extra `simpler`, ManiSkill's assets and, where there is no GPU, the Vulkan driver that
`daptq install simpler-driver` installs. `docs/reference/simpler.md` says how SimplerEnv's conventions
are mapped to those of `Environment`.

What it does not know: the tasks of the Google robot, SimplerEnv's visual variants, BridgeData.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final

import numpy as np
from jaxtyping import Float, Float32
from numpy.typing import NDArray

from daptq.environments._task_environment import PICTURE_SIZE, TaskEnvironment, refused_state
from daptq.environments.contract import Info, Observation
from daptq.environments.kinematics import POINTING_DOWN, euler_from_matrix
from daptq.environments.simpler.tasks import TASKS
from daptq.environments.simpler.world import CONTROL_FREQUENCY, SimplerWorld, require_simpler
from daptq.errors import InvalidInputError
from daptq.observations import STATE, ImageSizes, camera_key

__all__ = ["TASKS", "SimplerEnvironment", "make", "native_action"]

MAX_IMAGE_SIZE: Final = 640
_LIMIT: Final = np.array([1.0, 1.0, 1.0, np.pi / 2, np.pi / 2, np.pi / 2])
_HEADER: Final = 3


def native_action(action: Float[np.ndarray, "7"]) -> Float32[np.ndarray, "7"]:
    """Returns ManiSkill's action for an action of `SimplerEnvironment`.

    Args:
        action: Position change [m], intrinsic XYZ Euler angles [rad] and gripper (positive opens), float64.

    Returns:
        The same changes within SimplerEnv's bounds of 1 m and a quarter turn, and the gripper: +1 opens, -1 closes.
    """
    moved = np.clip(action[:6], -_LIMIT, _LIMIT)
    return np.append(moved, 1.0 if action[6] > 0 else -1.0).astype(np.float32)


class SimplerEnvironment(TaskEnvironment):
    """SimplerEnv's WidowX tasks with the contract of `Environment`.

    Actions (float32, 7) change the *commanded* end-effector pose, not the measured one: position [m] and intrinsic XYZ
    Euler angles [rad] in the base frame, and the gripper's sign (+1 open, -1 closed). Where inverse kinematics finds no
    joint positions for the commanded pose, the arm stays where it is.

    `observation.state` is float32 (7,): measured position [m], intrinsic XYZ Euler angles relative to a gripper
    pointing straight down [rad], gripper opening in [0, 1] (1 is open). The camera is `front`, SimplerEnv's
    `3rd_view_camera`.

    The seed chooses the initial state: row `seed` modulo their number, which is 24, and 64 for the eggplant. Scattered
    episodes start near that state, by an offset that the seed decides: they are there to learn from.

    Args:
        task: Task asked when `reset` names none.
        image_size: Size of each camera's picture, see `daptq.observations.ImageSizes`; cameras left out are not
            rendered, and without any no graphics driver is needed.
        horizon: Steps until truncation; None for SimplerEnv's, which is 60, and 120 for the eggplant.

    Raises:
        MissingDependencyError: If the extra `simpler`, its assets or, to draw, a Vulkan driver is not installed.
        InvalidInputError: If a task, camera, size or horizon is not usable.
    """

    tasks: ClassVar[tuple[str, ...]] = tuple(TASKS)
    control_frequency: ClassVar[float] = CONTROL_FREQUENCY

    def __init__(
        self,
        task: str = next(iter(TASKS)),
        *,
        image_size: ImageSizes | None = None,
        horizon: int | None = None,
    ) -> None:
        super().__init__(
            task,
            image_size=image_size,
            cameras={"front": 224},
            largest_image=MAX_IMAGE_SIZE,
            horizon=horizon,
            state_size=7,
            largest_move=_LIMIT,
        )
        require_simpler()
        self._asked_horizon = horizon
        self.horizon = max(map(self.horizon_of, self.tasks))
        self._worlds: dict[str, SimplerWorld] = {}
        self._scattered = False
        self._actions: list[NDArray[np.float32]] = []
        self._ever = False

    def horizon_of(self, task: str) -> int:
        """Returns SimplerEnv's horizon of `task`, unless another was asked for."""
        return TASKS[task].horizon if self._asked_horizon is None else self._asked_horizon

    def initial_states_of(self, task: str) -> int:
        """Returns the number of official initial states of `task`."""
        return TASKS[task].initial_states

    @property
    def instruction(self) -> str:
        """The instruction that the policy reads."""
        return TASKS[self._task].instruction

    @property
    def world(self) -> SimplerWorld:
        """Physics of the asked task; all are kept, since the renderer would be made anew without any."""
        if self._task not in self._worlds:
            self._worlds[self._task] = SimplerWorld(TASKS[self._task], draw=bool(self.image_size))
        return self._worlds[self._task]

    @property
    def commanded_pose(self) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3 3"]]:
        """Commanded end-effector position [m] and rotation relative to pointing straight down."""
        position, rotation = self.world.commanded()
        return position, rotation @ POINTING_DOWN.T

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, Info]:
        """Starts an episode.

        Args:
            seed: Chooses the initial state, and the offset of a scattered one. None draws one.
            options: `{"task": name}` chooses the task; without it the constructor's task is asked.
                `{"scattered": True}` moves the objects at random from where the initial state puts them: along both
                horizontal axes, by up to 3 cm on the table and 1 cm in the sink, and by half a radian.

        Returns:
            Observation and info.

        Raises:
            InvalidInputError: If the task or an option is unknown or the seed is negative.
        """
        chosen = self._start(seed, options, ("task", "scattered"))
        self._begin(self._seed, scattered=bool(chosen.get("scattered", False)))
        return self.observe(), self._info()

    def _begin(self, seed: int, *, scattered: bool) -> None:
        self._seed, self._scattered = seed, scattered
        world = self.world
        world.reset(seed % world.initial_states, np.random.default_rng(seed) if scattered else None)
        self._actions = []
        self._ever = False
        self._ready = True

    def advance(self, action: Float32[np.ndarray, "7"]) -> Info:
        """Runs one control step of 0.2 s without drawing a picture.

        Args:
            action: See the class.

        Raises:
            InvalidInputError: If the action is not 7 finite numbers, or `reset` was not called.
        """
        self._act(native_action(self._checked(action)))
        return self._info()

    def _act(self, action: NDArray[np.float32]) -> None:
        self.world.advance(action)
        self._actions.append(action)
        self._ever |= self.world.succeeds()

    def observe(self) -> Observation:
        """Returns the present observation; it renders every chosen camera."""
        world = self.world
        observation: Observation = {camera_key(camera): world.picture(size) for camera, size in self.image_size.items()}
        position, rotation = world.end_effector()
        angles = euler_from_matrix(rotation @ POINTING_DOWN.T)
        observation[STATE] = np.concatenate([position, angles, [world.gripper_opening]], dtype=np.float32)
        return observation

    def render(self) -> NDArray[np.uint8]:
        """Returns a 384 x 384 picture of the front camera.

        Raises:
            InvalidInputError: If the environment was made without a camera.
        """
        if not self.image_size:
            raise InvalidInputError(
                "environment must have a camera to render, got image_size={}. Make one with image_size={'front': 224}."
            )
        return self.world.picture(PICTURE_SIZE)

    def privileged_state(self) -> dict[str, Any]:
        """Returns what no camera tells.

        Returns:
            `<object>.position` float64 (3,) [m] and `<object>.yaw` float64 (1,), the direction of its x axis seen from
            above [rad], for the source and the target, `end_effector.position` float64 (3,) [m] and
            `end_effector.rotation` float64 (3, 3), all in the base frame, `gripper_opening` float64 (1,) in [0, 1],
            and `held`, the source if it is between the fingers, or None.
        """
        world, task = self.world, TASKS[self._task]
        state: dict[str, Any] = {}
        for name in (task.source, task.target):
            state[f"{name}.position"], rotation = world.object_pose(name)
            state[f"{name}.yaw"] = np.array([np.arctan2(rotation[1, 0], rotation[0, 0])])
        state["end_effector.position"], state["end_effector.rotation"] = world.end_effector()
        state["gripper_opening"] = np.array([world.gripper_opening])
        state["held"] = task.source if world.holds(task.source) else None
        return state

    def _info(self) -> Info:
        by_task = {self._task: self.world.succeeds()}
        return self._info_after(len(self._actions), self.world.end_effector(), by_task, self._ever)

    def get_state(self) -> Float[np.ndarray, " state"]:
        """Returns the full state: task, seed, whether scattered, and every action since the episode began."""
        head = [self.tasks.index(self._task), self._seed, float(self._scattered)]
        return np.concatenate([np.array(head, dtype=np.float64), *self._actions], dtype=np.float64)

    def set_state(self, state: Float[np.ndarray, " state"]) -> tuple[Observation, Info]:
        """Repeats the episode that a state of `get_state` tells; it goes on bit-identically.

        Raises:
            InvalidInputError: If `state` is not such an array.
        """
        values: NDArray[np.float64] = np.asarray(state, dtype=np.float64)
        if values.ndim != 1 or values.size < _HEADER or (values.size - _HEADER) % 7:
            raise refused_state(f"shape {values.shape}")
        if values[0] not in range(len(self.tasks)) or values[1] < 0 or values[2] not in (0, 1):
            raise refused_state(f"one that begins with {values[:_HEADER]}")
        self._task = self.tasks[int(values[0])]
        self._begin(int(values[1]), scattered=bool(values[2]))
        for action in values[_HEADER:].reshape(-1, 7).astype(np.float32):
            self._act(action)
        return self.observe(), self._info()

    def close(self) -> None:
        """Frees the scenes."""
        for world in self._worlds.values():
            world.close()
        self._worlds.clear()
        self._ready = False


def make(*, image_size: ImageSizes | None = None, horizon: int | None = None) -> SimplerEnvironment:
    """Returns the environment; what the catalog calls. See `SimplerEnvironment` for the arguments."""
    return SimplerEnvironment(image_size=image_size, horizon=horizon)
