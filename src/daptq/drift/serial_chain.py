"""Forward, differential and inverse kinematics of a serial chain of hinges: float64, batched, no simulator.

A chain alternates fixed transforms and rotations about a joint's axis and ends with the fixed transform to the
end-effector. It does not know masses, motors or collisions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from daptq.drift.poses import rotation_vector

__all__ = ["SerialChain", "damped_inverse"]

_LARGEST_STEP = 0.5  # rad
_SOLVER_DAMPING = 0.01  # decides how inverse kinematics gets to a pose, not to which
_REACHED = 1e-3  # m and rad


@dataclass(frozen=True, kw_only=True, eq=False)
class SerialChain:
    """A serial chain of hinge joints; every tensor is float64.

    Attributes:
        positions: Fixed translation before each joint, then before the end-effector [m].
        rotations: Fixed rotation before each joint, then before the end-effector.
        axes: Unit axis of each joint in its own frame.
        low: Lower limit of each joint [rad].
        high: Upper limit of each joint [rad].
    """

    positions: Float[Tensor, "joints_1 3"]
    rotations: Float[Tensor, "joints_1 3 3"]
    axes: Float[Tensor, "joints 3"]
    low: Float[Tensor, " joints"]
    high: Float[Tensor, " joints"]

    def forward(self, joints: Float[Tensor, "n joints"]) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n 3 3"]]:
        """The end-effector's position [m] and rotation matrix in the base frame at joint positions [rad]."""
        frames = self._frames(joints)
        return frames.position, frames.rotation

    def jacobian(
        self, joints: Float[Tensor, "n joints"], offset: Float[Tensor, "3"] | None = None
    ) -> Float[Tensor, "n 6 joints"]:
        """Geometric Jacobian in the base frame: rows 0-2 in m/rad, rows 3-5 in rad/rad.

        Args:
            joints: Joint positions [rad].
            offset: Point of interest in the end-effector's frame [m]; None for its origin.
        """
        frames = self._frames(joints)
        return frames.jacobian(frames.position if offset is None else frames.position + frames.rotation @ offset)

    def inverse(
        self,
        start: Float[Tensor, "n joints"],
        position: Float[Tensor, "n 3"],
        rotation: Float[Tensor, "n 3 3"],
        *,
        iterations: int = 200,
        tolerance: float = 1e-11,
    ) -> tuple[Float[Tensor, "n joints"], Bool[Tensor, " n"]]:
        """Joint positions near `start` whose pose is the asked one, by damped least squares within the limits.

        Args:
            start: Joint positions to start from [rad].
            position: Wanted position [m].
            rotation: Wanted rotation matrix.
            iterations: Most steps.
            tolerance: Stop when position error [m] plus rotation error [rad] is below this for every sample.

        Returns:
            Joint positions [rad], and whether each is within 1 mm and 1e-3 rad of its pose.
        """
        joints = start
        error = torch.full((len(start), 6), torch.inf, dtype=torch.float64)
        for _ in range(iterations):
            frames = self._frames(joints)
            turn = rotation_vector(rotation @ frames.rotation.mT)
            error = torch.cat([position - frames.position, turn], dim=-1)
            if float(error.abs().sum(dim=-1).max()) < tolerance:
                break
            step = damped_inverse(frames.jacobian(frames.position), _SOLVER_DAMPING) @ error[..., None]
            joints = (joints + step[..., 0].clamp(-_LARGEST_STEP, _LARGEST_STEP)).clamp(self.low, self.high)
        return joints, error.abs().amax(dim=-1) < _REACHED

    def _frames(self, joints: Float[Tensor, "n joints"]) -> _Frames:
        """Where everything is at joint positions [rad]."""
        position = torch.zeros(len(joints), 3, dtype=torch.float64)
        rotation = torch.eye(3, dtype=torch.float64).expand(len(joints), 3, 3)
        turns = _about_axes(self.axes, joints)
        anchors, axes = [], []
        for i, axis in enumerate(self.axes):
            position = position + rotation @ self.positions[i]
            rotation = rotation @ self.rotations[i]
            anchors.append(position)
            axes.append(rotation @ axis)
            rotation = rotation @ turns[:, i]
        return _Frames(
            position=position + rotation @ self.positions[-1],
            rotation=rotation @ self.rotations[-1],
            anchors=torch.stack(anchors, dim=1),
            axes=torch.stack(axes, dim=1),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Frames:
    """A chain at given joint positions, in the base frame.

    Attributes:
        position: Position of the end-effector [m].
        rotation: Rotation matrix of the end-effector.
        anchors: A point of every joint's axis [m].
        axes: Direction of every joint's axis.
    """

    position: Float[Tensor, "n 3"]
    rotation: Float[Tensor, "n 3 3"]
    anchors: Float[Tensor, "n joints 3"]
    axes: Float[Tensor, "n joints 3"]

    def jacobian(self, point: Float[Tensor, "n 3"]) -> Float[Tensor, "n 6 joints"]:
        """Velocity of a point of the last link [m/rad] and turning velocity [rad/rad] per joint."""
        return torch.cat([torch.linalg.cross(self.axes, point[:, None] - self.anchors, dim=-1), self.axes], dim=-1).mT


def _about_axes(axes: Float[Tensor, "joints 3"], angles: Float[Tensor, "n joints"]) -> Float[Tensor, "n joints 3 3"]:
    """Rotations about unit axes: I + sin K + (1 - cos) K^2, K the axis's cross-product matrix."""
    identity = torch.eye(3, dtype=torch.float64)
    cross = torch.linalg.cross(axes[:, None].expand(-1, 3, 3), identity.expand(len(axes), 3, 3), dim=-1).mT
    sine, cosine = angles.sin()[..., None, None], angles.cos()[..., None, None]
    return identity + sine * cross + (1 - cosine) * (cross @ cross)


def damped_inverse(jacobian: Float[Tensor, "*n 6 joints"], damping: float) -> Float[Tensor, "*n joints 6"]:
    """Damped pseudo-inverse J^T (J J^T + damping^2 I)^-1."""
    gram = jacobian @ jacobian.mT + damping**2 * torch.eye(6, dtype=torch.float64)
    inverse: Tensor = torch.linalg.solve(gram, jacobian).mT  # The Gram matrix is symmetric.
    return inverse
