"""Drift of a gripper whose actions are Cartesian delta poses: exact composition, for any arm that reaches every pose.

An action is [dx, dy, dz, droll, dpitch, dyaw, gripper]: a change of position [m], a rotation as intrinsic XYZ Euler
angles [rad], and a gripper command. Translation errors add up. A rotation error turns everything that is rigidly behind
it: the tool point, which lies `lever` along the approach axis from the end-effector (where a held object is), and, when
actions are in the tool frame, every later translation too. A gripper command is absolute, its error does not add
up.

A rotation about the approach axis moves no point of that axis: it costs nothing unless `half_gap` puts the two
fingertips beside it. The model does not know the arm (see the kinematic model) or limits of the workspace.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from daptq.action_space import END_EFFECTOR_DELTA, ActionSpace
from daptq.drift.contract import (
    ROWS_PER_STEP,
    DriftModel,
    checked_chunks,
    checked_poses,
    mean_square,
    normalised,
    refusal,
)
from daptq.drift.poses import Frame, carried, compose, displacements, matrix_from_euler, pointing_down
from daptq.errors import RecipeError

__all__ = ["ACTION_DIM", "DRIFT_MODEL", "Se3Config", "State", "displacement_jacobian"]

ACTION_DIM = 7
State = Literal["pose", "rest"]

_BATCH = 256


@dataclass(frozen=True, kw_only=True)
class Se3Config(DriftModel):
    """Settings of the composition.

    Attributes:
        frame: Frame of the actions: ``"base"`` (tabletop, SimplerEnv's WidowX) or ``"tool"``.
        lever: Distance from the end-effector to the tool point along the approach axis [m], not negative.
        gripper_travel: Travel of each fingertip per unit of the gripper's action [m], positive. The default is the
            tabletop gripper's: 22 mm between -1 and +1.
        half_gap: Distance from the tool point to each fingertip [m]; 0 judges the tool point alone.
        state: What ``observation.state`` holds: ``"pose"`` for an end-effector's position and Euler angles, or
            ``"rest"`` when it holds something else and every chunk is judged from a gripper that points straight down.
    """

    method: ClassVar[str] = "se3"

    frame: Frame = "base"
    lever: float = 0.1
    gripper_travel: float = 0.011
    half_gap: float = 0.0
    state: State = "pose"

    def __post_init__(self) -> None:
        if self.frame not in get_args(Frame):
            raise RecipeError(
                f"frame of the se3 drift model must be one of {', '.join(get_args(Frame))}, got {self.frame!r}. "
                "Choose the frame of the actions."
            )
        if self.state not in get_args(State):
            raise RecipeError(
                f"state of the se3 drift model must be one of {', '.join(get_args(State))}, got {self.state!r}. "
                "Choose what observation.state holds."
            )
        for label in ("lever", "half_gap"):
            value = getattr(self, label)
            if not (math.isfinite(value) and value >= 0):
                raise RecipeError(
                    f"{label} of the se3 drift model must be 0 or more metres, got {value}. Measure it on the gripper."
                )
        if not (math.isfinite(self.gripper_travel) and self.gripper_travel > 0):
            raise RecipeError(
                f"gripper_travel of the se3 drift model must be positive, got {self.gripper_travel}. Divide a "
                "fingertip's travel [m] by the range of its action."
            )

    def refuses(self, space: ActionSpace) -> str | None:
        """Whatever is not an end-effector's delta pose and gripper; see `DriftModel`."""
        return refusal(space, END_EFFECTOR_DELTA)

    def weights(
        self, actions: Float[Tensor, "n 7"], unit: Float[Tensor, " 7"] | None = None, *, space: ActionSpace
    ) -> Float[Tensor, " 7"]:
        """Diagonal of the metric of a single action from a gripper that points straight down; see `DriftModel`."""
        return normalised(self.metric(actions.unsqueeze(-2), None, space=space, steps=1), unit)

    def metric(
        self,
        chunks: Float[Tensor, "n chunk 7"],
        states: Float[Tensor, "n state"] | None,
        *,
        space: ActionSpace,
        steps: int,
    ) -> Float[Tensor, "chunk*7 chunk*7"]:
        """The matrix G; see `DriftModel`. Without states the gripper starts pointing straight down."""
        chunks = checked_chunks(self, chunks, space=space, steps=steps)
        if states is None or self.state == "rest":
            angles = torch.zeros(len(chunks), 3, dtype=torch.float64)
        else:
            angles = checked_poses(states, len(chunks))[:, 3:6]
        return mean_square(
            (
                displacement_jacobian(
                    some,
                    start,
                    frame=self.frame,
                    lever=self.lever,
                    gripper_travel=self.gripper_travel,
                    half_gap=self.half_gap,
                )
                for some, start in zip(chunks.split(_BATCH), angles.split(_BATCH), strict=True)
            ),
            steps,
        )


def displacement_jacobian(
    chunks: Float[Tensor, "n chunk 7"],
    angles: Float[Tensor, "n 3"],
    *,
    frame: Frame,
    lever: float,
    gripper_travel: float,
    half_gap: float,
) -> Float[Tensor, "n chunk 7 chunk*7"]:
    """Exact derivative of tool point and fingertips after every action with respect to the whole chunk.

    With poses (p_k, Q_k) and the lever l in the gripper's frame, the tool point is p_k + Q_k l; a turn w_j of action j
    moves it by w_j x (Q_k l) plus, in the tool frame, w_j x (p_k - p_j).

    Args:
        chunks: float64 action chunks.
        angles: Intrinsic XYZ Euler angles before the chunk, relative to pointing straight down [rad].
        frame: Frame of the actions.
        lever: Distance from the end-effector to the tool point along the approach axis [m].
        gripper_travel: Travel of each fingertip per unit of the gripper's action [m].
        half_gap: Distance from the tool point to each fingertip [m].

    Returns:
        float64; rows as `daptq.drift.contract.ROWS_PER_STEP` names them [m], columns action after action.
    """
    n, chunk, _ = chunks.shape
    deltas = chunks[..., :6]
    start = matrix_from_euler(angles) @ pointing_down()
    positions, rotations = compose(deltas, torch.zeros(n, 3, dtype=torch.float64), start, frame)
    poses = displacements(deltas, positions, rotations, frame)
    result = torch.zeros(n, chunk, ROWS_PER_STEP, chunk, ACTION_DIM, dtype=torch.float64)
    turning = poses[:, :, 3:]
    result[:, :, :3, :, :6] = poses[:, :, :3] + carried(turning, lever * rotations[:, 1:, :, 0])
    result[:, :, 4:, :, :6] = carried(turning, half_gap * rotations[:, 1:, :, 1])
    steps = torch.arange(chunk)
    result[:, steps, 3, steps, 6] = gripper_travel
    return result.flatten(3)


DRIFT_MODEL = Se3Config
