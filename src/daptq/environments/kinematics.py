"""Rotations in the WidowX convention, and damped least squares inverse kinematics on MuJoCo's Jacobian.

Orientations are given relative to a gripper that points straight down, as intrinsic XYZ Euler angles, so that zero is
the usual grasp and the angles' singularity (a pitch of a quarter turn) is far away. Bridge's data does the same.
"""

from __future__ import annotations

from typing import Final

import mujoco
import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

# Columns: the gripper's x axis points down, its y axis (the fingers' travel) along the base's y axis.
POINTING_DOWN: Final[NDArray[np.float64]] = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
POINTING_DOWN.setflags(write=False)


def matrix_from_euler(angles: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3 3"]:
    """Returns the rotation matrix of intrinsic XYZ Euler `angles` [rad]."""
    return Rotation.from_euler("XYZ", angles).as_matrix()


def euler_from_matrix(matrix: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "3"]:
    """Returns the intrinsic XYZ Euler angles [rad] of a rotation matrix."""
    return Rotation.from_matrix(matrix).as_euler("XYZ")


def rotation_vector(matrix: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "3"]:
    """Returns axis times angle [rad] of a rotation matrix."""
    return Rotation.from_matrix(matrix).as_rotvec()


class ArmKinematics:
    """Forward and inverse kinematics of the arm in a MuJoCo model, on a scratch copy of its state.

    Args:
        model: Model that holds the arm.
        joints: Names of the arm's hinge joints, in order.
        site: Name of the site that marks the end-effector.
        damping: Damping of the least squares step, in the Jacobian's units.
    """

    def __init__(self, model: mujoco.MjModel, joints: tuple[str, ...], site: str, damping: float = 0.01) -> None:
        self._model = model
        self._data = mujoco.MjData(model)
        self._site: int = model.site(site).id
        identifiers = [model.joint(name).id for name in joints]
        self._positions: NDArray[np.int64] = np.array([model.jnt_qposadr[i] for i in identifiers], dtype=np.int64)
        self._degrees: NDArray[np.int64] = np.array([model.jnt_dofadr[i] for i in identifiers], dtype=np.int64)
        self._range: NDArray[np.float64] = np.array(model.jnt_range[identifiers], dtype=np.float64)
        self._damping = damping
        self._full_jacobian: NDArray[np.float64] = np.zeros((6, model.nv))

    def forward(
        self, joint_positions: Float[np.ndarray, " joints"]
    ) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3 3"]]:
        """Returns the end-effector's position [m] and rotation matrix in the base frame at `joint_positions` [rad]."""
        self._data.qpos[self._positions] = joint_positions
        mujoco.mj_kinematics(self._model, self._data)
        position: NDArray[np.float64] = self._data.site_xpos[self._site].copy()
        rotation: NDArray[np.float64] = self._data.site_xmat[self._site].reshape(3, 3).copy()
        return position, rotation

    def jacobian(self, joint_positions: Float[np.ndarray, " joints"]) -> Float[np.ndarray, "6 joints"]:
        """Returns the geometric Jacobian in the base frame: rows 0-2 in m/rad, rows 3-5 in rad/rad."""
        self.forward(joint_positions)
        return self._jacobian_here()

    def inverse(
        self,
        start: Float[np.ndarray, " joints"],
        position: Float[np.ndarray, "3"],
        rotation: Float[np.ndarray, "3 3"],
        *,
        iterations: int = 12,
        tolerance: float = 2e-4,
    ) -> Float[np.ndarray, " joints"]:
        """Returns joint positions [rad] near `start` whose end-effector pose is nearest to the asked one.

        Args:
            start: Joint positions to start from [rad].
            position: Wanted position [m].
            rotation: Wanted rotation matrix.
            iterations: Most damped least squares steps.
            tolerance: Stop when position error [m] plus rotation error [rad] falls below this.
        """
        joints: NDArray[np.float64] = np.array(start, dtype=np.float64)
        identity = self._damping**2 * np.eye(6)
        error: NDArray[np.float64] = np.empty(6)
        for _ in range(iterations):
            here, orientation = self.forward(joints)
            error[:3] = position - here
            error[3:] = rotation_vector(rotation @ orientation.T)
            if np.abs(error).sum() < tolerance:
                break
            jacobian = self._jacobian_here()
            step = jacobian.T @ np.linalg.solve(jacobian @ jacobian.T + identity, error)
            joints = np.clip(joints + np.clip(step, -0.5, 0.5), self._range[:, 0], self._range[:, 1])
        return joints

    def _jacobian_here(self) -> Float[np.ndarray, "6 joints"]:
        mujoco.mj_comPos(self._model, self._data)
        full = self._full_jacobian
        mujoco.mj_jacSite(self._model, self._data, full[:3], full[3:], self._site)
        return full[:, self._degrees].copy()
