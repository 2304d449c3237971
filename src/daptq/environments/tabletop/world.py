"""The physics of one tabletop scene: placing objects, moving the arm, and telling what touches and rests on what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import mujoco
import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from daptq.environments.kinematics import POINTING_DOWN, ArmKinematics
from daptq.environments.tabletop.objects import DISTRACTORS, ObjectSpec, TaskSpec
from daptq.environments.tabletop.scene import FINGER_CLOSED, FINGER_OPEN, build_model
from daptq.environments.tabletop.sizes import resized_objects, resized_tasks
from daptq.environments.tabletop.variants import NOMINAL, Variant
from daptq.robots.widowx_250 import JOINTS, REST, SITE

HOME_POSITION: Final = (0.24, 0.0, 0.17)
_PLACEMENT_LOW: Final = (0.20, -0.15)
_PLACEMENT_HIGH: Final = (0.36, 0.15)
_DISTRACTOR_LOW: Final = (0.14, -0.27)
_DISTRACTOR_HIGH: Final = (0.44, 0.27)
_DISTRACTOR_GAP: Final = 0.02  # m
_BATCH: Final = 256
_MAX_BATCHES: Final = 100
_CHUNKS: Final = 10  # joint targets change this often within a control step
_RAMP: Final = 0.8  # share of the control step after which the joint targets are reached
_SETTLE_STEPS: Final = 20
_MAX_SPEED_AT_REST: Final = 0.05  # m/s
_LEFT, _RIGHT, _NOTHING = -1, -2, -3


@dataclass(frozen=True, kw_only=True, eq=False)
class PushedBody:
    """A force on a body.

    Attributes:
        body: Name of the body.
        force: float64 (3,), in the base frame, at the body's centre of mass [N].
        chunks: How many of the ten chunks of a control step it lasts.
    """

    body: str
    force: Float[np.ndarray, "3"]
    chunks: int


class TabletopWorld:
    """Model and state of one scene.

    Args:
        scene: A name in `SCENES`.
        control_period: Length of a control step [s].
        variant: What differs from the nominal scene.

    Attributes:
        objects: What the tasks are about, in the sizes of the variant.
        tasks: The tasks of the scene by name, for these sizes.
    """

    def __init__(self, scene: str, control_period: float, variant: Variant = NOMINAL) -> None:
        self.objects: Final[tuple[ObjectSpec, ...]] = resized_objects(scene, variant.object_size)
        self.tasks: Final[dict[str, TaskSpec]] = resized_tasks(scene, variant.object_size)
        self.model = build_model(scene, variant)
        self.data = mujoco.MjData(self.model)
        self.kinematics = ArmKinematics(self.model, JOINTS, SITE)
        self.home_joints = self.kinematics.inverse(
            np.array(REST), np.array(HOME_POSITION), POINTING_DOWN, iterations=100, tolerance=1e-10
        )
        self._distractors = DISTRACTORS if variant.distractors else ()
        # Objects of any size start where those of nominal size would, which takes their contacts to tell.
        self._layout = self if variant.object_size == 1.0 else TabletopWorld(scene, control_period)
        self._substeps = round(control_period / self.model.opt.timestep / _CHUNKS)
        self._site: int = self.model.site(SITE).id
        self._arm: slice = slice(0, len(JOINTS))
        self._finger: int = int(self.model.joint("left_finger").qposadr[0])
        self._body = {spec.name: int(self.model.body(spec.name).id) for spec in (*self.objects, *self._distractors)}
        self._specs = {spec.name: spec for spec in self.objects}
        owner_of_body = np.full(self.model.nbody, _NOTHING)
        for index, spec in enumerate(self.objects):
            owner_of_body[self._body[spec.name]] = index
        owner_of_body[self.model.body("left_finger").id] = _LEFT
        owner_of_body[self.model.body("right_finger").id] = _RIGHT
        self._owner: NDArray[np.int64] = owner_of_body[self.model.geom_bodyid]
        self._contacts: frozenset[tuple[int, int]] = frozenset()

    def reset(self, generator: np.random.Generator) -> None:
        """Puts the arm at home with the gripper open and draws a place for every object."""
        self._go_home()
        poses = self._layout._draw_poses(generator)
        if self._layout is not self:
            self._put(self.objects, poses)
        if self._distractors:
            self._put(self._distractors, self._draw_distractors(generator, poses))
        self.data.qacc_warmstart[:] = 0.0
        mujoco.mj_step(self.model, self.data, nstep=_SETTLE_STEPS)
        self.data.time = 0.0
        self.refresh()

    def _go_home(self) -> None:
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[self._arm] = self.home_joints
        self.data.ctrl[self._arm] = self.home_joints
        self.data.qpos[self._finger] = FINGER_OPEN
        self.data.qpos[self._finger + 1] = -FINGER_OPEN
        self.data.ctrl[len(JOINTS)] = FINGER_OPEN

    def _draw_poses(self, generator: np.random.Generator) -> Float[np.ndarray, "objects 3"]:
        """Draws x, y [m] and yaw [rad] of every object until nothing touches, and puts the objects there."""
        while True:
            places = self._draw_places(generator)
            turns = np.array([spec.yaw_range for spec in self.objects]) * generator.uniform(-1, 1, len(places))
            poses = np.column_stack([places, turns])
            self._put(self.objects, poses)
            # The discs keep apart, but a corner may stick out.
            if not any(0 <= one < other for one, other in self._contacts):
                return poses

    def _put(self, specs: tuple[ObjectSpec, ...], poses: Float[np.ndarray, "specs 3"]) -> None:
        for spec, (x, y, yaw) in zip(specs, poses, strict=True):
            pose = np.array([x, y, spec.rest_height, np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)])
            if spec.movable:
                start = int(self.model.joint(spec.name).qposadr[0])
                self.data.qpos[start : start + 7] = pose
            else:
                mocap = int(self.model.body_mocapid[self._body[spec.name]])
                self.data.mocap_pos[mocap], self.data.mocap_quat[mocap] = pose[:3], pose[3:]
        self.refresh()

    def _draw_distractors(
        self, generator: np.random.Generator, poses: Float[np.ndarray, "objects 3"]
    ) -> Float[np.ndarray, "distractors 3"]:
        """Draws x, y [m] and yaw [rad] of every distractor, out of the way of a gripper that takes an object."""
        taken = [(pose[:2], spec.radius + _DISTRACTOR_GAP) for pose, spec in zip(poses, self.objects, strict=True)]
        drawn: list[NDArray[np.float64]] = []
        for spec in self._distractors:
            place = generator.uniform(_DISTRACTOR_LOW, _DISTRACTOR_HIGH)
            while any(np.linalg.norm(place - other) < radius + spec.radius for other, radius in taken):
                place = generator.uniform(_DISTRACTOR_LOW, _DISTRACTOR_HIGH)
            taken.append((place, spec.radius))
            drawn.append(np.append(place, generator.uniform(-spec.yaw_range, spec.yaw_range)))
        return np.stack(drawn)

    def _draw_places(self, generator: np.random.Generator) -> Float[np.ndarray, "objects 2"]:
        radii = np.array([spec.radius for spec in self.objects])
        needed = radii[:, None] + radii[None, :]
        np.fill_diagonal(needed, 0.0)
        for _ in range(_MAX_BATCHES):  # about one draw in a hundred keeps everything apart
            places: NDArray[np.float64] = generator.uniform(_PLACEMENT_LOW, _PLACEMENT_HIGH, (_BATCH, len(radii), 2))
            gaps = np.linalg.norm(places[:, :, None] - places[:, None, :], axis=-1)
            apart = np.flatnonzero((gaps >= needed).all(axis=(1, 2)))
            if apart.size:
                return places[apart[0]]
        raise RuntimeError(
            f"objects must fit on the table within {_MAX_BATCHES * _BATCH} draws, got none. Make them smaller."
        )

    def advance(
        self, joint_targets: Float[np.ndarray, "6"], finger_target: float, push: PushedBody | None = None
    ) -> None:
        """Runs one control step: joint targets [rad] ramp linearly from the present ones, the finger's [m] jumps.

        Args:
            joint_targets: Where the arm's joints go [rad].
            finger_target: Where the fingers go [m].
            push: A force that acts from the beginning of the step.
        """
        ctrl = self.data.ctrl
        start = ctrl[self._arm].copy()
        ctrl[len(JOINTS)] = finger_target
        for chunk in range(1, _CHUNKS + 1):
            share = min(1.0, chunk / (_RAMP * _CHUNKS))
            ctrl[self._arm] = start + share * (joint_targets - start)
            if push is not None:
                acts = chunk <= push.chunks
                self.data.xfrc_applied[self.model.body(push.body).id, :3] = push.force if acts else 0.0
            mujoco.mj_step(self.model, self.data, nstep=self._substeps)
        if push is not None:
            self.data.xfrc_applied[:] = 0.0
        self.refresh()

    def refresh(self) -> None:
        """Brings everything derived (poses, contacts) up to date with the state, without touching the state."""
        warmstart = self.data.qacc_warmstart.copy()
        mujoco.mj_forward(self.model, self.data)
        self.data.qacc_warmstart[:] = warmstart
        pairs = np.sort(self._owner[self.data.contact.geom], axis=1) if self.data.ncon else np.empty((0, 2), int)
        self._contacts = frozenset((int(a), int(b)) for a, b in pairs)

    @property
    def joint_positions(self) -> Float[np.ndarray, "6"]:
        """Measured joint positions [rad]."""
        return self.data.qpos[self._arm].copy()

    def forward_kinematics(
        self, joint_positions: Float[np.ndarray, "6"]
    ) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3 3"]]:
        """Position [m] and rotation matrix of the end-effector in the base frame at `joint_positions` [rad]."""
        return self.kinematics.forward(joint_positions)

    def jacobian(self) -> Float[np.ndarray, "6 6"]:
        """Jacobian at the present joints: rows 0-2 [m/rad], rows 3-5 [rad/rad], base frame."""
        return self.kinematics.jacobian(self.joint_positions)

    @property
    def joint_targets(self) -> Float[np.ndarray, "6"]:
        """Joint positions that the actuators hold [rad]."""
        return self.data.ctrl[self._arm].copy()

    @property
    def gripper_opening(self) -> float:
        """Measured opening in [0, 1]; 1 is fully open."""
        share = (float(self.data.qpos[self._finger]) - FINGER_CLOSED) / (FINGER_OPEN - FINGER_CLOSED)
        return float(np.clip(share, 0.0, 1.0))

    def end_effector(self) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3 3"]]:
        """Measured end-effector position [m] and rotation matrix in the base frame."""
        position: NDArray[np.float64] = self.data.site_xpos[self._site].copy()
        rotation: NDArray[np.float64] = self.data.site_xmat[self._site].reshape(3, 3).copy()
        return position, rotation

    def position(self, name: str) -> Float[np.ndarray, "3"]:
        """Position of an object's origin [m]."""
        return self.data.xpos[self._body[name]].copy()

    def yaw(self, name: str) -> float:
        """Yaw of an object [rad], within half its symmetry angle either side of zero.

        For a body with quarter-turn symmetry the most level of its axes counts, so that a tumbled block has a yaw too.
        """
        spec = self._specs[name]
        axes = self.data.xmat[self._body[name]].reshape(3, 3)
        quarter = spec.symmetry < 2.0
        axis = axes[:, int(np.argmin(np.abs(axes[2])))] if quarter else axes[:, 0]
        yaw = float(np.arctan2(axis[1], axis[0]))
        return (yaw + spec.symmetry / 2) % spec.symmetry - spec.symmetry / 2

    def held(self) -> str | None:
        """Name of the object that both fingers touch, or None."""
        for index, spec in enumerate(self.objects):
            if spec.movable and {(_LEFT, index), (_RIGHT, index)} <= self._contacts:
                return spec.name
        return None

    def rests(self, task: TaskSpec) -> bool:
        """Whether the task's source is where it belongs, by position alone: it may still be held or moving."""
        target = self.position(task.target)
        offset = self.position(task.source) - target
        yaw = self.yaw(task.target)
        along = np.array([np.cos(yaw), np.sin(yaw)])
        local = np.array([offset[:2] @ along, offset[1] * along[0] - offset[0] * along[1]])
        below, above = task.z_tolerance
        return bool(np.abs(local).max() <= task.xy_tolerance and -below <= offset[2] - task.height <= above)

    def succeeds(self, task: TaskSpec) -> bool:
        """Success rule: the source rests on the target, supported by it, still, and not held."""
        names = [spec.name for spec in self.objects]
        source = names.index(task.source)
        pair = tuple(sorted((source, names.index(task.target))))
        first = int(self.model.joint(task.source).dofadr[0])
        speed = float(np.linalg.norm(self.data.qvel[first : first + 3]))
        return self.rests(task) and pair in self._contacts and speed < _MAX_SPEED_AT_REST and self.held() != task.source

    def get_state(self) -> Float[np.ndarray, " state"]:
        """Returns MuJoCo's integration state (it holds controls and placed bodies too)."""
        kind = mujoco.mjtState.mjSTATE_INTEGRATION
        state: NDArray[np.float64] = np.empty(mujoco.mj_stateSize(self.model, kind))
        mujoco.mj_getState(self.model, self.data, state, kind)
        return state

    def set_state(self, state: Float[np.ndarray, " state"]) -> None:
        """Restores a state of `get_state`."""
        mujoco.mj_setState(self.model, self.data, state, mujoco.mjtState.mjSTATE_INTEGRATION)
        self.refresh()
