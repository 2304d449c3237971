"""Rotations in the WidowX convention, and how Cartesian delta actions compose to the pose of a gripper.

Orientations are intrinsic XYZ Euler angles relative to a gripper that points straight down; the gripper's x axis is its
approach axis. Everything is float64 and batched. The module knows no arm: a pose is reached exactly, neither a
workspace nor a largest step clips it.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = [
    "Frame",
    "carried",
    "compose",
    "displacements",
    "matrix_from_euler",
    "pointing_down",
    "rotation_vector",
    "turning_axes",
]

Frame = Literal["base", "tool"]


def pointing_down() -> Float[Tensor, "3 3"]:
    """Rotation matrix of a gripper at zero angles: its x axis points down, its y axis along the base's."""
    return torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]], dtype=torch.float64)


def _about(axis: int, angle: Float[Tensor, "*n"]) -> Float[Tensor, "*n 3 3"]:
    """Rotation by `angle` about a coordinate axis."""
    result = torch.zeros(*angle.shape, 3, 3, dtype=angle.dtype)
    first, second = (axis + 1) % 3, (axis + 2) % 3
    result[..., axis, axis] = 1.0
    result[..., first, first] = result[..., second, second] = angle.cos()
    result[..., second, first] = angle.sin()
    result[..., first, second] = -angle.sin()
    return result


def matrix_from_euler(angles: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3 3"]:
    """Rotation matrix R_x(a) R_y(b) R_z(c) of intrinsic XYZ Euler angles [rad]."""
    a, b, c = angles.unbind(-1)
    return _about(0, a) @ _about(1, b) @ _about(2, c)


def turning_axes(angles: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3 3"]:
    """Axes w_a, w_b, w_c (columns) with dE = [w]_x E for E = R_x(a) R_y(b) R_z(c).

    They are e_x, R_x(a) e_y and R_x(a) R_y(b) e_z, in the frame that E's left side is written in.
    """
    a, b, _ = angles.unbind(-1)
    about_x = _about(0, a)
    first = torch.zeros_like(angles)
    first[..., 0] = 1.0
    return torch.stack([first, about_x[..., 1], (about_x @ _about(1, b))[..., 2]], dim=-1)


def rotation_vector(matrix: Float[Tensor, "*n 3 3"]) -> Float[Tensor, "*n 3"]:
    """Axis times angle [rad] of rotation matrices whose angle is less than pi."""
    skew = matrix - matrix.mT
    doubled = torch.stack([skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0]], dim=-1)
    sine = doubled.norm(dim=-1, keepdim=True) / 2
    cosine = (matrix.diagonal(dim1=-2, dim2=-1).sum(dim=-1, keepdim=True) - 1) / 2
    angle = torch.atan2(sine, cosine)
    return doubled * torch.where(sine > 1e-12, angle / (2 * sine), 0.5)


def compose(
    deltas: Float[Tensor, "n chunk 6"],
    position: Float[Tensor, "n 3"],
    rotation: Float[Tensor, "n 3 3"],
    frame: Frame,
) -> tuple[Float[Tensor, "n chunk_1 3"], Float[Tensor, "n chunk_1 3 3"]]:
    """Poses before the first and after every delta [dx, dy, dz, droll, dpitch, dyaw].

    In the base frame p' = p + d and Q' = E Q, as the tabletop environment and SimplerEnv's WidowX do it; in the tool
    frame p' = p + Q d and Q' = Q E.

    Args:
        deltas: float64, [m] and [rad].
        position: Position before the first delta [m].
        rotation: Rotation matrix of the gripper before the first delta.
        frame: Frame of the deltas.

    Returns:
        Positions [m] and rotation matrices in the base frame, chunk + 1 of each.
    """
    turns = matrix_from_euler(deltas[..., 3:])
    positions, rotations = [position], [rotation]
    for k in range(deltas.shape[1]):
        step = deltas[:, k, :3, None]
        moved = step if frame == "base" else rotations[-1] @ step
        positions.append(positions[-1] + moved[..., 0])
        rotations.append(turns[:, k] @ rotations[-1] if frame == "base" else rotations[-1] @ turns[:, k])
    return torch.stack(positions, dim=1), torch.stack(rotations, dim=1)


def displacements(
    deltas: Float[Tensor, "n chunk 6"],
    positions: Float[Tensor, "n chunk_1 3"],
    rotations: Float[Tensor, "n chunk_1 3 3"],
    frame: Frame,
) -> Float[Tensor, "n chunk 6 chunk 6"]:
    """Exact derivative of every composed pose with respect to every delta.

    Args:
        deltas: float64, as given to `compose`.
        positions: Positions of `compose`.
        rotations: Rotation matrices of `compose`.
        frame: Frame of the deltas.

    Returns:
        Entry [:, k, :, j] belongs to the pose after action k and the delta of action j: rows 0-2 its position [m],
        rows 3-5 its rotation vector [rad], both in the base frame; zero for j > k.
    """
    n, chunk = deltas.shape[:2]
    result = torch.zeros(n, chunk, 6, chunk, 6, dtype=torch.float64)
    axes = turning_axes(deltas[..., 3:])
    identity = torch.eye(3, dtype=torch.float64)
    for k in range(chunk):
        for j in range(k + 1):
            if frame == "base":
                # Later turns carry the axis along; positions do not depend on orientations.
                result[:, k, :3, j, :3] = identity
                result[:, k, 3:, j, 3:] = rotations[:, k + 1] @ rotations[:, j + 1].mT @ axes[:, j]
            else:
                turning = rotations[:, j] @ axes[:, j]
                arm = (positions[:, k + 1] - positions[:, j + 1])[..., None].expand_as(turning)
                result[:, k, :3, j, :3] = rotations[:, j]
                result[:, k, :3, j, 3:] = torch.linalg.cross(turning, arm, dim=1)
                result[:, k, 3:, j, 3:] = turning
    return result


def carried(turning: Float[Tensor, "n chunk 3 j c"], arm: Float[Tensor, "n chunk 3"]) -> Float[Tensor, "n chunk 3 j c"]:
    """How turning velocities move a point at the end of `arm` [m]: their cross products with it."""
    return torch.linalg.cross(turning, arm[..., None, None].expand_as(turning), dim=2)
