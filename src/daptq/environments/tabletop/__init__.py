"""The embedded benchmark: a WidowX 250 s arm, two scenes, four tasks, on MuJoCo alone.

Conventions follow SimplerEnv's WidowX set-up, the benchmark of DA-PTQ: 5 Hz control, 60 steps, target-relative delta
end-effector actions, success by where the source object rests. Two tasks share a scene, and the scene at reset depends
on (scene, seed) only, so that one picture goes with two instructions and a policy has to read them.

A variant (`VARIANTS`) changes one thing about scene, sensors or motors and leaves the initial states as they are.

What it does not know: deformable objects, a camera that moves within an episode; it is no stand-in for SimplerEnv's
numbers.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final

import numpy as np
from jaxtyping import Float, Float32
from numpy.typing import NDArray

from daptq.environments._rendering import CameraRenderer
from daptq.environments._task_environment import PICTURE_SIZE, TaskEnvironment, refused_state, state_numbers
from daptq.environments.contract import Info, Observation
from daptq.environments.kinematics import POINTING_DOWN, euler_from_matrix, matrix_from_euler
from daptq.environments.tabletop.objects import SCENES, TASKS, scene_of, tasks_of
from daptq.environments.tabletop.scene import FINGER_OPEN, MAX_IMAGE_SIZE
from daptq.environments.tabletop.variants import VARIANTS, find_variant
from daptq.environments.tabletop.world import HOME_POSITION, PushedBody, TabletopWorld
from daptq.observations import STATE, CameraSize, ImageSizes, camera_key

__all__ = ["TASKS", "VARIANTS", "TabletopEnvironment", "make"]

_POSITION_LOW: Final = np.array([0.15, -0.23, 0.022])
_POSITION_HIGH: Final = np.array([0.40, 0.23, 0.18])
_ANGLE_LIMIT: Final = np.array([0.5, 0.5, 1.7])
_MAX_DELTA: Final = np.array([0.1, 0.1, 0.1, 0.5, 0.5, 0.5])
_CLOSE_TARGET: Final = 0.0  # beyond the fingers' stop, so that a closed gripper squeezes with its full force
_UNREACHABLE: Final = 0.003  # m
_HEADER: Final = 14
_FIRST_PUSH, _LAST_PUSH = 4, 19  # control steps; an episode that succeeds does so after 16 to 28
_OBSERVATION_NOISE, _ACTION_NOISE, _PUSH = 1, 2, 3  # streams of random numbers, beside that of the placement


class TabletopEnvironment(TaskEnvironment):
    """Tabletop manipulation with a six-joint arm.

    Actions (float32, 7) change the *commanded* end-effector pose, not the measured one: position [m] and intrinsic XYZ
    Euler rotation [rad] in the base frame, then the gripper (its sign: +1 open, -1 closed). Changes beyond 0.1 m or
    0.5 rad a step are clipped, and so is the commanded pose to the reachable workspace. A pose that inverse kinematics
    cannot reach is replaced by the one it did reach.

    `observation.state` is float32 (7,): measured position [m], intrinsic XYZ Euler angles relative to a gripper
    pointing straight down [rad], gripper opening in [0, 1] (1 is open).

    Args:
        task: Task asked when `reset` names none.
        image_size: Size of each camera's picture, see `daptq.observations.ImageSizes`; cameras left out are not
            rendered. The cameras are `front` (fixed) and `wrist` (on the gripper).
        horizon: Steps until truncation.
        variant: A name in `VARIANTS`; None for the nominal scene. A state of `get_state` belongs to its variant.

    Raises:
        InvalidInputError: If a task, camera, size or horizon is not usable.
        UnknownNameError: If there is no such variant.
    """

    tasks: ClassVar[tuple[str, ...]] = tuple(TASKS)
    control_frequency: ClassVar[float] = 5.0

    def __init__(
        self,
        task: str = "spoon_on_towel",
        *,
        image_size: ImageSizes | None = None,
        horizon: int = 60,
        variant: str | None = None,
    ) -> None:
        super().__init__(
            task,
            image_size=image_size,
            cameras={"front": 128, "wrist": 64},
            largest_image=MAX_IMAGE_SIZE,
            horizon=horizon,
            state_size=7,
            largest_move=_MAX_DELTA,
        )
        self.variant: Final = find_variant(variant)
        self.horizon = horizon
        self._worlds: dict[str, TabletopWorld] = {}
        self._renderers: dict[str, CameraRenderer] = {}
        self._step = 0
        self._position: NDArray[np.float64] = np.array(HOME_POSITION)
        self._angles: NDArray[np.float64] = np.zeros(3)
        self._gripper_open = True
        self._ever: dict[str, bool] = {}

    @property
    def scene(self) -> str:
        """Name of the scene of the asked task."""
        return scene_of(self._task)

    @property
    def instruction(self) -> str:
        """The instruction that the policy reads."""
        return TASKS[self._task].instruction

    @property
    def world(self) -> TabletopWorld:
        """Physics of the present scene."""
        if self.scene not in self._worlds:
            self._worlds[self.scene] = TabletopWorld(self.scene, 1.0 / self.control_frequency, self.variant)
        return self._worlds[self.scene]

    @property
    def commanded_pose(self) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3 3"]]:
        """Commanded end-effector position [m] and rotation relative to pointing straight down."""
        return self._position.copy(), matrix_from_euler(self._angles)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, Info]:
        """Starts an episode.

        Args:
            seed: Decides, together with the scene, where the objects lie. None draws one.
            options: `{"task": name}` chooses the task; without it the constructor's task is asked.

        Returns:
            Observation and info.

        Raises:
            InvalidInputError: If the task or an option is unknown or the seed is negative.
        """
        self._start(seed, options)
        self.world.reset(np.random.default_rng([list(SCENES).index(self.scene), self._seed]))
        self._position = np.array(HOME_POSITION)
        self._angles = np.zeros(3)
        self._gripper_open = True
        self._step = 0
        self._ready = True
        self._ever = dict.fromkeys(tasks_of(self.scene), False)
        return self.observe(), self._info()

    def advance(self, action: Float32[np.ndarray, "7"]) -> Info:
        """Runs one control step of 0.2 s without drawing a picture.

        Args:
            action: See the class.

        Raises:
            InvalidInputError: If the action is not 7 finite numbers, or `reset` was not called.
        """
        values = self._checked(action)
        world = self.world
        deltas = np.clip(values[:6] + self._action_noise(), -_MAX_DELTA, _MAX_DELTA)
        self._position = np.clip(self._position + deltas[:3], _POSITION_LOW, _POSITION_HIGH)
        turned = matrix_from_euler(deltas[3:]) @ matrix_from_euler(self._angles)
        self._angles = np.clip(euler_from_matrix(turned), -_ANGLE_LIMIT, _ANGLE_LIMIT)
        self._gripper_open = bool(values[6] > 0)

        rotation = matrix_from_euler(self._angles) @ POINTING_DOWN
        joints = world.kinematics.inverse(world.joint_targets, self._position, rotation)
        reached, orientation = world.kinematics.forward(joints)
        if np.linalg.norm(reached - self._position) > _UNREACHABLE:
            self._position, self._angles = reached, euler_from_matrix(orientation @ POINTING_DOWN.T)
        world.advance(joints, FINGER_OPEN if self._gripper_open else _CLOSE_TARGET, self._push())

        self._step += 1
        for name in self._ever:
            self._ever[name] |= world.succeeds(world.tasks[name])
        return self._info()

    def _stream(self, purpose: int, step: int) -> np.random.Generator:
        """Random numbers that depend on the episode's seed and the step alone: every policy meets the same."""
        return np.random.default_rng([purpose, self._seed, step])

    def _action_noise(self) -> Float[np.ndarray, "6"] | float:
        """What is added to a commanded move [m, rad]."""
        variant = self.variant
        if variant.move_noise == 0.0 and variant.turn_noise == 0.0:
            return 0.0
        spread = np.repeat([variant.move_noise, variant.turn_noise], 3)
        return self._stream(_ACTION_NOISE, self._step).normal(0.0, spread)

    def _push(self) -> PushedBody | None:
        """The force that acts in the present step."""
        push = self.variant.push
        if push is None:
            return None
        generator = self._stream(_PUSH, 0)
        when, angle = generator.integers(_FIRST_PUSH, _LAST_PUSH + 1), generator.uniform(0, 2 * np.pi)
        if self._step != when:
            return None
        force = push.force * np.array([np.cos(angle), np.sin(angle), 0.0])
        body = "gripper_link" if push.target == "gripper" else TASKS[self._task].source
        return PushedBody(body=body, force=force, chunks=push.chunks)

    def observe(self) -> Observation:
        """Returns the present observation; it renders every chosen camera."""
        world = self.world
        observation: Observation = {
            camera_key(camera): self._picture(camera, size) for camera, size in self.image_size.items()
        }
        position, rotation = world.end_effector()
        angles = euler_from_matrix(rotation @ POINTING_DOWN.T)
        observation[STATE] = np.concatenate([position, angles, [world.gripper_opening]], dtype=np.float32)
        if self.variant.pixel_noise or self.variant.position_noise:
            self._disturb(observation)
        return observation

    def _disturb(self, observation: Observation) -> None:
        """Adds the variant's noise to pictures and measured position."""
        generator = self._stream(_OBSERVATION_NOISE, self._step)
        for camera in self.image_size:
            key = camera_key(camera)
            noisy = observation[key] + generator.normal(0.0, self.variant.pixel_noise, observation[key].shape)
            observation[key] = np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
        noise = generator.normal(0.0, self.variant.position_noise, 3)
        observation[STATE][:3] += noise.astype(np.float32)

    def render(self) -> NDArray[np.uint8]:
        """Returns a 384 x 384 picture of the front camera."""
        return self._picture("front", PICTURE_SIZE)

    def _picture(self, camera: str, size: CameraSize) -> NDArray[np.uint8]:
        scene = self.scene
        if scene not in self._renderers:
            self._renderers[scene] = CameraRenderer(self.world.model, self._largest_edge())
        return self._renderers[scene].render(self.world.data, camera, size)

    def privileged_state(self) -> dict[str, Any]:
        """Returns what no camera tells.

        Returns:
            `<object>.position` float64 (3,) [m] and `<object>.yaw` float64 (1,) [rad] for every object of the scene,
            `end_effector.position` float64 (3,) [m], `end_effector.rotation` float64 (3, 3), `gripper_opening`
            float64 (1,) in [0, 1], and `held`, the name of the object between the fingers or None.
        """
        world = self.world
        state: dict[str, Any] = {}
        for spec in world.objects:
            state[f"{spec.name}.position"] = world.position(spec.name)
            state[f"{spec.name}.yaw"] = np.array([world.yaw(spec.name)])
        state["end_effector.position"], state["end_effector.rotation"] = world.end_effector()
        state["gripper_opening"] = np.array([world.gripper_opening])
        state["held"] = world.held()
        return state

    def _info(self) -> Info:
        world = self.world
        by_task = {name: world.succeeds(world.tasks[name]) for name in self._ever}
        return self._info_after(self._step, world.end_effector(), by_task, self._ever[self._task])

    def get_state(self) -> Float[np.ndarray, " state"]:
        """Returns the full state: task, seed, step, success flags, commanded pose, and MuJoCo's integration state."""
        ever = [float(self._ever[name]) for name in tasks_of(self.scene)]
        header = [self.tasks.index(self._task), self._seed, self._step, float(self._gripper_open), *ever]
        head: NDArray[np.float64] = np.zeros(_HEADER)
        head[: len(header)] = header
        head[-6:] = [*self._position, *self._angles]
        return np.concatenate([head, self.world.get_state()])

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
        self._seed, self._step = int(values[1]), int(values[2])
        self._gripper_open = bool(values[3])
        self._ever = {name: bool(values[4 + i]) for i, name in enumerate(tasks_of(self.scene))}
        self._position, self._angles = values[_HEADER - 6 : _HEADER - 3].copy(), values[_HEADER - 3 : _HEADER].copy()
        self._ready = True
        self.world.set_state(values[_HEADER:])
        return self.observe(), self._info()

    def close(self) -> None:
        """Frees the graphics contexts."""
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()


def make(*, image_size: ImageSizes | None = None, horizon: int = 60, variant: str | None = None) -> TabletopEnvironment:
    """Returns the environment; what the catalog calls. See `TabletopEnvironment` for the arguments."""
    return TabletopEnvironment(image_size=image_size, horizon=horizon, variant=variant)
