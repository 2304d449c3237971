"""The physics of one SimplerEnv task: ManiSkill's scene, its controller and its rule of success.

The scene is built anew at every reset. SAPIEN keeps contacts from one simulation step to the next and offers no way to
save or clear them: only an episode that begins in a new scene is the same every time, and only one that is repeated
from its beginning goes on as it did. What it does not know: observations, actions in physical units, episodes.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree as ET

import mujoco
import numpy as np
from jaxtyping import Float, Float32, UInt8
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from daptq.environments.kinematics import ArmKinematics
from daptq.environments.simpler.driver import offer_driver, render_device
from daptq.environments.simpler.tasks import SimplerTask
from daptq.errors import MissingDependencyError
from daptq.observations import CameraSize
from daptq.robots.widowx_250 import JOINTS

__all__ = ["CONTROL_FREQUENCY", "SimplerWorld", "asset_folder", "require_simpler"]

CONTROL_FREQUENCY: Final = 5.0
MANISKILL: Final = "3.0.1"
_INSTALL: Final = 'Run `pip install "daptq[simpler]"`, or `make test-simpler` in the repository.'
_ASSETS: Final = ("tasks/bridge_v2_real2sim_dataset", "robots/widowx")
_DOWNLOAD: Final = (
    "Run `python -m mani_skill.utils.download_asset bridge_v2_real2sim` and the same for widowx250s, or set "
    "MS_ASSET_DIR to a folder that holds them."
)
_CAMERA: Final = "3rd_view_camera"
_NATIVE_SIZE: Final = np.array([640.0, 480.0])  # the picture size of the camera's intrinsics
_END_EFFECTOR: Final = "ee_gripper_link"
_FINGER_OPEN: Final = 0.037  # m, each finger
_FINGER_CLOSED: Final = 0.015
_SCATTER: Final = 0.03  # m
_SCATTER_IN_SINK: Final = 0.01  # m; its walls slope
_SCATTER_TURN: Final = 0.5  # rad


def require_simpler() -> None:
    """Checks that ManiSkill and the assets of the tasks are there.

    Raises:
        MissingDependencyError: If ManiSkill is missing, has another version, cannot be imported, or has no assets.
    """
    try:
        found = version("mani-skill")
    except PackageNotFoundError:
        raise MissingDependencyError(f"mani-skill must be installed, got no such package. {_INSTALL}") from None
    if found != MANISKILL:
        raise MissingDependencyError(f"mani-skill must be {MANISKILL} for simpler, got {found}. {_INSTALL}")
    for folder in _ASSETS:
        if not (asset_folder() / folder).is_dir():
            raise MissingDependencyError(
                f"ManiSkill's assets must be there, got no {asset_folder() / folder}. {_DOWNLOAD}"
            )


def asset_folder() -> Path:
    """Where ManiSkill looks for assets."""
    offer_driver()
    with _quiet():
        try:
            from mani_skill import ASSET_DIR
        except ImportError as error:
            raise MissingDependencyError(f"mani-skill must be importable, got {error}. {_INSTALL}") from error
    return Path(ASSET_DIR)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences what ManiSkill and SAPIEN log and warn about."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


class SimplerWorld:
    """Scene, controller and camera of one task.

    Args:
        task: Task whose scene is built.
        draw: Whether pictures will be asked for; without them no graphics driver is needed.

    Raises:
        MissingDependencyError: If ManiSkill, its assets or, to draw, a Vulkan driver is missing.
    """

    def __init__(self, task: SimplerTask, *, draw: bool) -> None:
        require_simpler()
        device = render_device() if draw else None
        with _quiet():
            import sapien
            from mani_skill.utils.registration import REGISTERED_ENVS

            base = REGISTERED_ENVS[task.environment].cls
            # Without an observation mode nothing is drawn at a step. Lists that ManiSkill keeps on its class, so that
            # one scene inherits the objects of the one before, are given to each class anew.
            own: dict[str, Any] = {
                "SUPPORTED_OBS_MODES": ["none"],
                "rgb_overlay_mode": "none",
                "_objects_to_remove_from_greenscreen": [],
                "_rgb_overlay_images": {},
            }
            made = type(base.__name__, (base,), own)
            self._env: Any = made(obs_mode="none", sim_backend="physx_cpu", render_backend="none")
            if device is not None:
                # ManiSkill's parser knows no software device by its full name.
                self._env._render_device = self._env.backend.render_device = sapien.Device(device)
        self.task: Final = task
        self._overlays: dict[CameraSize, NDArray[np.uint8]] = {}
        self._cameras: dict[CameraSize, Any] = {}
        self._positions: NDArray[np.float64] = np.array(self._env.xyz_configs, dtype=np.float64)
        self._quaternions: NDArray[np.float64] = np.array(self._env.quat_configs, dtype=np.float64)
        self._kinematics = _arm_kinematics(Path(self._env.agent.urdf_path))

    @property
    def initial_states(self) -> int:
        """Number of official initial states."""
        return len(self._positions) * len(self._quaternions)

    def reset(self, row: int, scatter: np.random.Generator | None = None) -> None:
        """Builds the scene in an official initial state.

        Args:
            row: Number of the state: ManiSkill's `episode_id`.
            scatter: Moves the objects at random along both horizontal axes, up to 3 cm on the table and 1 cm in the
                sink, and turns them by up to 0.5 rad. The invisible target in the basket stays where it is.
        """
        position = self._positions[row // len(self._quaternions)].copy()
        quaternion = self._quaternions[row % len(self._quaternions)].copy()
        if scatter is not None:
            reach, moved = (_SCATTER_IN_SINK, 1) if self.task.in_sink else (_SCATTER, 2)
            for index in range(moved):
                position[index, :2] += scatter.uniform(-reach, reach, 2)
                turn = Rotation.from_rotvec([0, 0, scatter.uniform(-1, 1) * _SCATTER_TURN])
                turned = turn * Rotation.from_quat(quaternion[index], scalar_first=True)
                quaternion[index] = turned.as_quat(scalar_first=True)
        self._cameras.clear()
        with _quiet():
            import torch

            self._env.xyz_configs = torch.tensor(position[None], dtype=torch.float32)
            self._env.quat_configs = torch.tensor(quaternion[None], dtype=torch.float32)
            _, info = self._env.reset(seed=0, options={"reconfigure": True, "episode_id": 0})
        self._success = bool(info["success"])

    def advance(self, action: Float32[np.ndarray, "7"]) -> None:
        """Runs one control step with an action as ManiSkill's controller takes it."""
        self._success = bool(self._env.step(action[None])[-1]["success"])

    @property
    def joint_positions(self) -> Float[np.ndarray, "6"]:
        """Measured joint positions of the arm [rad]."""
        return self._joints()[: len(JOINTS)]

    @property
    def gripper_opening(self) -> float:
        """Measured opening in [0, 1]; 1 is fully open."""
        finger = float(self._joints()[len(JOINTS) :].mean())
        return float(np.clip((finger - _FINGER_CLOSED) / (_FINGER_OPEN - _FINGER_CLOSED), 0.0, 1.0))

    def _joints(self) -> Float[np.ndarray, "8"]:
        return self._env.agent.robot.get_qpos()[0].numpy().astype(np.float64)

    def forward_kinematics(
        self, joint_positions: Float[np.ndarray, "6"]
    ) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3 3"]]:
        """Returns the end-effector's position [m] and rotation matrix in the base frame at `joint_positions` [rad]."""
        return self._kinematics.forward(joint_positions)

    def jacobian(self) -> Float[np.ndarray, "6 6"]:
        """Returns the Jacobian at the present joints in the base frame: rows 0-2 [m/rad], rows 3-5 [rad/rad]."""
        return self._kinematics.jacobian(self.joint_positions)

    def end_effector(self) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3 3"]]:
        """Measured end-effector position [m] and rotation matrix in the base frame."""
        return self.forward_kinematics(self.joint_positions)

    def commanded(self) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3 3"]]:
        """Commanded end-effector position [m] and rotation matrix in the base frame, to which actions are added."""
        return _pose(self._env.agent.controller.controllers["arm"]._target_pose)

    def object_pose(self, name: str) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3 3"]]:
        """Position [m] and rotation matrix of an object in the base frame."""
        position, rotation = _pose(self._env.objs[name].pose)
        base_position, base_rotation = _pose(self._env.agent.robot.pose)
        return base_rotation.T @ (position - base_position), base_rotation.T @ rotation

    def holds(self, name: str) -> bool:
        """Whether both fingers press on an object."""
        return bool(self._env.agent.is_grasping(self._env.objs[name]))

    def succeeds(self) -> bool:
        """ManiSkill's rule for the task, after the last step."""
        return self._success

    def picture(self, size: CameraSize) -> UInt8[np.ndarray, "height width 3"]:
        """Draws the third-person view, RGB, top row first, over the photograph that ManiSkill overlays.

        The whole view of 640 x 480 is squeezed into the picture.
        """
        if size not in self._cameras:
            self._cameras[size] = self._new_camera(size)
        self._env.scene.update_render(update_sensors=True, update_human_render_cameras=False)
        camera = self._cameras[size]
        camera.capture()
        seen = camera.get_obs(rgb=True, depth=False, position=False, segmentation=True)
        kept = [self._env.objs[name] for name in self._env.objects_excluded_from_greenscreening]
        numbers = np.concatenate([one.per_scene_id.numpy() for one in (*kept, *self._env.agent.robot.get_links())])
        drawn = np.isin(seen["segmentation"][0].numpy(), numbers)
        return np.where(drawn, seen["rgb"][0].numpy(), self._overlay(size)).astype(np.uint8)

    def _new_camera(self, size: CameraSize) -> Any:
        from mani_skill.sensors.camera import Camera, CameraConfig

        robot = self._env.agent
        (configuration,) = [one for one in robot._sensor_configs if one.uid == _CAMERA]
        intrinsic = configuration.intrinsic.copy()
        intrinsic[:2] *= (np.array([size.width, size.height]) / _NATIVE_SIZE)[:, None]
        scaled = CameraConfig(
            uid=f"{_CAMERA} {size.width} x {size.height}",
            pose=configuration.pose,
            width=size.width,
            height=size.height,
            intrinsic=intrinsic,
            near=configuration.near,
            far=configuration.far,
            entity_uid=configuration.entity_uid,
        )
        return Camera(scaled, self._env.scene, articulation=robot.robot)

    def _overlay(self, size: CameraSize) -> NDArray[np.uint8]:
        if size not in self._overlays:
            import cv2

            photograph = cv2.cvtColor(cv2.imread(self._env.rgb_overlay_paths[_CAMERA]), cv2.COLOR_BGR2RGB)
            self._overlays[size] = cv2.resize(photograph, (size.width, size.height), interpolation=cv2.INTER_AREA)
        return self._overlays[size]

    def close(self) -> None:
        """Frees the scene."""
        self._cameras.clear()
        self._env.close()


def _pose(pose: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Position and rotation matrix of one of ManiSkill's poses."""
    position: NDArray[np.float64] = pose.p[0].numpy().astype(np.float64)
    quaternion = pose.q[0].numpy().astype(np.float64)
    rotation: NDArray[np.float64] = Rotation.from_quat(quaternion, scalar_first=True).as_matrix()
    return position, rotation


def _arm_kinematics(description: Path) -> ArmKinematics:
    """The arm's kinematics in float64 from its description (URDF); SAPIEN's are float32."""
    tree = ET.parse(description).getroot()
    for link in tree.iter("link"):
        for shape in [*link.findall("visual"), *link.findall("collision")]:
            link.remove(shape)
    compiler = ET.SubElement(ET.SubElement(tree, "mujoco"), "compiler")
    compiler.set("fusestatic", "false")
    specification = mujoco.MjSpec.from_string(ET.tostring(tree, encoding="unicode"))
    specification.body(_END_EFFECTOR).add_site(name=_END_EFFECTOR)
    return ArmKinematics(specification.compile(), JOINTS, _END_EFFECTOR)
