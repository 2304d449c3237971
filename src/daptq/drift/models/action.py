"""Drift of a robot of which nothing is known but what its numbers mean: the mean square of the action errors.

It serves every action space, so that no policy is left without a drift model. A metre counts as a metre; radians,
pixels and numbers without a unit count through nominal lengths, which are settings. Errors of different actions and of
different dimensions do not add up, and states do not enter: the millimetres are nominal. A model that knows the robot
(se3, kinematic) says more where it reads the action space.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from daptq.action_space import ActionDimension, ActionSpace
from daptq.drift.contract import SQUARE_MILLIMETRES, DriftModel, checked_chunks, normalised
from daptq.errors import RecipeError

__all__ = ["DRIFT_MODEL", "ActionConfig"]

_JOINTS = ("joint", "joint-delta")


@dataclass(frozen=True, kw_only=True)
class ActionConfig(DriftModel):
    """Nominal lengths [m] that an error of one unit moves a point of the robot by; all positive.

    Attributes:
        rotation_lever: Per radian of an end-effector's rotation: the distance to the point that matters, as in se3.
        joint_lever: Per radian of a joint: the distance from a joint in the middle of a small arm to its tool.
        gripper_travel: Per unit of a gripper command. The default moves a finger by 40 mm when a command runs from -1
            to 1; where it runs from 0 to 1, twice as much is right.
        pixel: Per pixel.
        unitless: Per unit of any other number without a unit.
    """

    method: ClassVar[str] = "action"

    rotation_lever: float = 0.1
    joint_lever: float = 0.3
    gripper_travel: float = 0.02
    pixel: float = 0.001
    unitless: float = 0.02

    def __post_init__(self) -> None:
        for setting in fields(self):
            value = getattr(self, setting.name)
            if not (math.isfinite(value) and value > 0):
                raise RecipeError(
                    f"{setting.name} of the action drift model must be positive, got {value}. Give a length in metres."
                )

    def refuses(self, space: ActionSpace) -> str | None:  # noqa: ARG002  (it reads every space)
        """Nothing is refused; see `DriftModel`."""
        return None

    def length(self, dimension: ActionDimension) -> float:
        """Metres that an error of one unit of the dimension counts as."""
        if dimension.unit == "m":
            return 1.0
        if dimension.kind == "gripper":
            return self.gripper_travel
        if dimension.unit == "rad":
            return self.joint_lever if dimension.kind in _JOINTS else self.rotation_lever
        return self.pixel if dimension.unit == "px" else self.unitless

    def weights(
        self,
        actions: Float[Tensor, "n action"],
        unit: Float[Tensor, " action"] | None = None,
        *,
        space: ActionSpace,
    ) -> Float[Tensor, " action"]:
        """Squares of the nominal lengths of one normalised unit, mean 1; see `DriftModel`."""
        return normalised(self.metric(actions.unsqueeze(-2), None, space=space, steps=1), unit)

    def metric(
        self,
        chunks: Float[Tensor, "n chunk action"],
        states: Float[Tensor, "n state"] | None,  # noqa: ARG002  (see the module's docstring)
        *,
        space: ActionSpace,
        steps: int,
    ) -> Float[Tensor, "chunk*action chunk*action"]:
        """G: diagonal, the squared nominal lengths of every executed action over `steps`; see `DriftModel`."""
        chunks = checked_chunks(self, chunks, space=space, steps=steps)
        lengths = torch.tensor([self.length(dimension) for dimension in space], dtype=torch.float64)
        diagonal = torch.zeros(chunks.shape[1], len(space), dtype=torch.float64)
        diagonal[:steps] = lengths.square() * (SQUARE_MILLIMETRES / steps)
        return torch.diag(diagonal.flatten())


DRIFT_MODEL = ActionConfig
