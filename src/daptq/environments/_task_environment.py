"""What the environments share: their arguments, the spaces that follow from them, the asked task, and `info`.

It knows no physics: a class adds a world, what is seen of it, and what an action does.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import gymnasium
import numpy as np
from jaxtyping import Float, Float32
from numpy.typing import NDArray

from daptq.environments.contract import Environment, Info
from daptq.errors import InvalidInputError, UnknownNameError
from daptq.observations import STATE, CameraSize, ImageSizes, camera_key, camera_name

__all__ = ["PICTURE_SIZE", "TaskEnvironment", "World", "refused_state", "state_numbers"]

PICTURE_SIZE: Final = CameraSize(384, 384)  # of what `render` returns


class World(Protocol):
    """The physics of a task, as far as every environment shows it; see `Environment` for shapes and units."""

    @property
    def joint_positions(self) -> Float[np.ndarray, " joints"]:
        """Measured joint positions."""

    def forward_kinematics(
        self, joint_positions: Float[np.ndarray, " joints"]
    ) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3 3"]]:
        """Position and rotation matrix of the end-effector at joint positions."""

    def jacobian(self) -> Float[np.ndarray, "6 joints"]:
        """The manipulator Jacobian at the present joints."""


class TaskEnvironment(Environment):
    """An environment that is asked tasks by name, and draws pictures.

    Args:
        task: Task asked when `reset` names none.
        image_size: Size of each camera's picture; cameras left out are not drawn. None for every camera at its own.
        cameras: Edge length [px] of the square picture of every camera that there is, where no size is asked for.
        largest_image: Largest edge length [px].
        horizon: Steps until truncation; None where every task has its own.
        state_size: Numbers of `observation.state`.
        largest_move: Largest move of an action along each axis [m, rad].

    Raises:
        InvalidInputError: If a task, camera, size or horizon is not usable.
    """

    def __init__(
        self,
        task: str,
        *,
        image_size: ImageSizes | None,
        cameras: Mapping[str, int],
        largest_image: int,
        horizon: int | None,
        state_size: int,
        largest_move: Float[np.ndarray, "6"],
    ) -> None:
        sizes: dict[str, CameraSize] = {}
        for key, asked in (cameras if image_size is None else image_size).items():
            camera = camera_name(key)
            if camera not in cameras:
                known = f"{'one of ' if len(cameras) > 1 else ''}{', '.join(cameras)}"
                raise InvalidInputError(f"camera must be {known}, got {key!r}. Leave it out of image_size.")
            size = cameras[camera] if asked is None else asked
            sizes[camera] = CameraSize(size, size) if isinstance(size, int) else CameraSize(*size)
            if not all(1 <= edge <= largest_image for edge in sizes[camera]):
                raise InvalidInputError(
                    f"image size of {camera} must be in 1..{largest_image}, got {asked}. Choose another."
                )
        if horizon is not None and horizon < 1:
            raise InvalidInputError(f"horizon must be at least 1, got {horizon}. Allow more steps.")
        self._task = self._default_task = self._check_task(task)
        self._ready = False
        self._seed = 0
        self.image_size: Final = sizes
        self.render_mode = "rgb_array"
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": int(self.control_frequency)}
        spaces: dict[str, gymnasium.Space[Any]] = {
            camera_key(camera): gymnasium.spaces.Box(0, 255, (*size, 3), np.uint8) for camera, size in sizes.items()
        }
        unbounded = np.full(state_size, np.inf, dtype=np.float32)
        spaces[STATE] = gymnasium.spaces.Box(-unbounded, unbounded, dtype=np.float32)
        self.observation_space = gymnasium.spaces.Dict(spaces)
        bound = np.append(largest_move, 1.0).astype(np.float32)
        self.action_space = gymnasium.spaces.Box(-bound, bound, dtype=np.float32)

    @classmethod
    def _check_task(cls, task: str) -> str:
        """Returns a task that there is; refuses any other."""
        if task not in cls.tasks:
            raise UnknownNameError("task", task, cls.tasks)
        return task

    @property
    def task(self) -> str:
        """Name of the asked task."""
        return self._task

    @property
    @abstractmethod
    def world(self) -> World:
        """Physics of the asked task."""

    @property
    def joint_positions(self) -> Float[np.ndarray, " joints"]:
        """Measured joint positions [rad], float64."""
        return self.world.joint_positions

    def forward_kinematics(
        self, joint_positions: Float[np.ndarray, " joints"]
    ) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3 3"]]:
        """Returns the end-effector's position [m] and rotation matrix in the base frame at `joint_positions` [rad]."""
        return self.world.forward_kinematics(joint_positions)

    def jacobian(self) -> Float[np.ndarray, "6 joints"]:
        """Returns the manipulator Jacobian at the present joints: rows 0-2 [m/rad], rows 3-5 [rad/rad], base frame."""
        return self.world.jacobian()

    def _start(
        self, seed: int | None, options: Mapping[str, Any] | None, allowed: Sequence[str] = ("task",)
    ) -> dict[str, Any]:
        """Checks what `reset` was given and makes the task and the seed those of the new episode.

        Args:
            seed: Seed of the episode; None draws one.
            options: Options of the reset.
            allowed: Names of the options that there are.

        Returns:
            The options.
        """
        chosen = dict(options or {})
        unknown = [name for name in chosen if name not in allowed]
        if unknown:
            known, others = " and ".join(map(repr, allowed)), ", ".join(map(repr, unknown))
            raise InvalidInputError(f"reset options must be {known} only, got {others}. Leave the others out.")
        if seed is not None and seed < 0:
            raise InvalidInputError(f"seed must be 0 or more, got {seed}. Choose another.")
        gymnasium.Env.reset(self, seed=seed)
        self._task = self._check_task(chosen.get("task", self._default_task))
        self._seed = int(self.np_random.integers(2**31)) if seed is None else int(seed)
        return chosen

    def _largest_edge(self) -> int:
        """The longest edge [px] of any picture that is drawn."""
        return max(edge for size in (PICTURE_SIZE, *self.image_size.values()) for edge in size)

    def _checked(self, action: Float32[np.ndarray, "7"]) -> NDArray[np.float64]:
        """An action as float64 (7,)."""
        if not self._ready:
            raise InvalidInputError("step must follow reset, got an environment never reset. Call reset first.")
        values: NDArray[np.float64] = np.asarray(action, dtype=np.float64)
        if values.shape != (7,):
            raise InvalidInputError(f"action must have shape (7,), got {values.shape}. Pass one action, not a chunk.")
        if not np.isfinite(values).all():
            raise InvalidInputError(f"action must be finite, got {values}. Check the policy's un-normalisation.")
        return values

    def _info_after(
        self,
        step: int,
        pose: tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3 3"]],
        success_by_task: Mapping[str, bool],
        ever: bool,
    ) -> Info:
        """The info after `step` control steps, with the end-effector's pose and whether the task ever succeeded."""
        position, rotation = pose
        return {
            "task": self.instruction,
            "success": success_by_task[self._task],
            "success_any_step": ever,
            "success_by_task": dict(success_by_task),
            "end_effector_position": position,
            "end_effector_rotation": rotation,
            "step_index": step,
            "seed": self._seed,
        }


def refused_state(got: str) -> InvalidInputError:
    """The error for what `get_state` did not return."""
    return InvalidInputError(
        f"state must be an array of get_state, got {got}. Pass what get_state of this environment returned."
    )


def state_numbers(state: Float[np.ndarray, " state"], header: int, tasks: Sequence[str]) -> NDArray[np.float64]:
    """The numbers of a state that begins with the number of a task.

    Args:
        state: What `set_state` was given.
        header: How many numbers there are before the world's own.
        tasks: The environment's tasks.

    Raises:
        InvalidInputError: It is no such array.
    """
    values: NDArray[np.float64] = np.asarray(state, dtype=np.float64)
    if values.ndim != 1 or values.size <= header or values[0] not in range(len(tasks)):
        raise refused_state(f"shape {values.shape}")
    return values
