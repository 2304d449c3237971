"""Drift weights of the action dimensions from a virtual planar chain (arXiv 2604.11572, eq. 12-18).

A seven-dimensional action [dx, dy, dz, drx, dry, drz, dgripper] is read as seven joint increments of a planar chain
with unit links; the weighted columns of the damped pseudo-inverse of the chain's Jacobian say how much a dimension
matters. The module does not know the robot: no length, joint axis or unit of the real manipulator enters, so the
millimetres of its metric are nominal. The paper's remark that earlier dimensions always have the larger column norm
holds for small angles only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from daptq.action_space import END_EFFECTOR_DELTA, ActionSpace
from daptq.drift.contract import SQUARE_MILLIMETRES, DriftModel, checked_chunks, refusal
from daptq.errors import InvalidInputError, RecipeError

__all__ = ["ACTION_DIM", "DRIFT_MODEL", "VirtualChainConfig", "drift_weights", "jacobian"]

ACTION_DIM = 7


@dataclass(frozen=True, kw_only=True)
class VirtualChainConfig(DriftModel):
    """Settings of eq. 15-16.

    Attributes:
        damping: Damping of the pseudo-inverse, lambda of eq. 15, positive.
        translation_weight: Weight of the chain's x and y, w_x = w_y of eq. 16, positive.
        rotation_weight: Weight of the chain's angle, w_theta of eq. 16, positive.
    """

    method: ClassVar[str] = "virtual-chain"

    damping: float = 3e-4
    translation_weight: float = 1.8
    rotation_weight: float = 0.15

    def __post_init__(self) -> None:
        for label in ("damping", "translation_weight", "rotation_weight"):
            value = getattr(self, label)
            if not (math.isfinite(value) and value > 0):
                raise RecipeError(
                    f"{label} of the virtual chain must be positive, got {value}. Keep the paper's value."
                )

    def refuses(self, space: ActionSpace) -> str | None:
        """Whatever is not an end-effector's delta pose and gripper; see `DriftModel`."""
        return refusal(space, END_EFFECTOR_DELTA)

    def weights(
        self,
        actions: Float[Tensor, "n 7"],
        unit: Float[Tensor, " 7"] | None = None,  # noqa: ARG002  (see the docstring)
        *,
        space: ActionSpace,  # noqa: ARG002  (there is only one)
    ) -> Float[Tensor, " 7"]:
        """`drift_weights` with these settings; like the paper it leaves `unit` aside and weighs every unit alike."""
        return drift_weights(actions, self.damping, self.translation_weight, self.rotation_weight)

    def metric(
        self,
        chunks: Float[Tensor, "n chunk 7"],
        states: Float[Tensor, "n state"] | None,  # noqa: ARG002  (they do not enter)
        *,
        space: ActionSpace,
        steps: int,
    ) -> Float[Tensor, "chunk*7 chunk*7"]:
        """G that belongs to eq. 18: diagonal, the paper's weights for every executed action; see `DriftModel`.

        The scale is the chain's own: its links are read as 1 m, so a unit error of a dimension of weight 1 counts as
        1 m. These millimetres are nominal; ratios between layers mean something, millimetres of a robot they are not.
        Errors of different actions do not add up, and the states do not enter.
        """
        chunks = checked_chunks(self, chunks, space=space, steps=steps)
        weights = self.weights(chunks[:, :steps].flatten(0, 1), space=space)
        diagonal = torch.zeros(chunks.shape[1], ACTION_DIM, dtype=torch.float64)
        diagonal[:steps] = weights * (SQUARE_MILLIMETRES / steps)
        return torch.diag(diagonal.flatten())


def jacobian(actions: Float[Tensor, "n 7"]) -> Float[Tensor, "n 3 7"]:
    """Jacobian of the virtual chain's (x, y, theta) with respect to its joints, eq. 12-14.

    Args:
        actions: (n, 7) actions in physical units, read as joint increments [rad] of the chain.

    Returns:
        float64 (n, 3, 7). Column j sums links j to 6, so column 7 has no translation.

    Raises:
        InvalidInputError: `actions` is not a finite (n, 7) tensor.
    """
    actions = torch.as_tensor(actions)
    if actions.dim() != 2 or actions.shape[1] != ACTION_DIM:
        raise InvalidInputError(
            f"actions of the virtual chain must have shape (n, {ACTION_DIM}), got {tuple(actions.shape)}. "
            "Choose another drift model for other action spaces."
        )
    increments = actions.to(torch.float64)
    if not bool(torch.isfinite(increments).all()):
        raise InvalidInputError(
            "actions of the virtual chain must be finite, got NaN or infinity. Remove those actions."
        )
    angles = increments.cumsum(dim=1)[:, : ACTION_DIM - 1]
    result = torch.zeros(len(increments), 3, ACTION_DIM, dtype=torch.float64, device=actions.device)
    result[:, 0, :-1] = -angles.sin().flip(1).cumsum(dim=1).flip(1)
    result[:, 1, :-1] = angles.cos().flip(1).cumsum(dim=1).flip(1)
    result[:, 2] = 1.0
    return result


def drift_weights(
    actions: Float[Tensor, "n 7"],
    damping: float = 3e-4,
    translation_weight: float = 1.8,
    rotation_weight: float = 0.15,
) -> Float[Tensor, " 7"]:
    """Weight of every action dimension in the drift loss, eq. 15-17.

    Args:
        actions: (n, 7) demonstration actions in physical units, n at least 1.
        damping: lambda of the damped pseudo-inverse J^T (J J^T + lambda I)^-1.
        translation_weight: w_x = w_y.
        rotation_weight: w_theta.

    Returns:
        float64 (7,), positive, mean 1.

    Raises:
        InvalidInputError: `actions` is empty, not finite or not (n, 7).
    """
    chain = jacobian(actions)
    if len(chain) == 0:
        raise InvalidInputError("actions of the virtual chain must not be empty, got 0 rows. Give at least one action.")
    gram = chain @ chain.mT + damping * torch.eye(3, dtype=torch.float64, device=chain.device)
    pseudo_inverse = torch.linalg.solve(gram, chain).mT  # The Gram matrix is symmetric, so this is J^T gram^-1.
    axes = torch.tensor(
        [translation_weight, translation_weight, rotation_weight], dtype=torch.float64, device=chain.device
    )
    raw = (pseudo_inverse.abs() @ axes).mean(dim=0)
    return raw / raw.mean()


DRIFT_MODEL = VirtualChainConfig
