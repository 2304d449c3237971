"""Drift of a real arm: the Jacobian of its joint chain, for commands in joint or in Cartesian space.

``"joint-delta"`` reads an action as [dq_1, …, dq_J, gripper]: errors of the joints add up, and the chain's Jacobian at
the joints after action k says what they do to the tool point then. ``"joint"`` reads it as [q_1, …, q_J, gripper],
where the joints go to: an error lasts until the next action, and the chunk alone says where the joints are.

``"cartesian-delta"`` reads an action as [dx, dy, dz, droll, dpitch, dyaw, gripper] in the base frame: the error of the
commanded pose goes through one step of damped least squares to the joints and through the Jacobian to the arm, which
moves by J J^+ times the error. Where the arm moves freely that is the error itself (the se3 model); near a singularity
the arm moves less than it was commanded to.

Tool point and fingertips are those of the se3 model: `lever` metres along the end-effector's x axis, and `half_gap` to
either side of it along the y axis.
The model does not know how motors lag their commands or what the workspace's limits clip, and takes the measured
state for the commanded one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from daptq.action_space import END_EFFECTOR_DELTA, ActionDimension, ActionSpace
from daptq.drift.contract import (
    ROWS_PER_STEP,
    DriftModel,
    checked_chunks,
    checked_poses,
    checked_states,
    mean_square,
    normalised,
    refusal,
)
from daptq.drift.mjcf import read_chain
from daptq.drift.poses import compose, displacements, matrix_from_euler, pointing_down
from daptq.drift.serial_chain import SerialChain, damped_inverse
from daptq.errors import InvalidInputError, RecipeError
from daptq.robots.widowx_250 import JOINTS, MJCF, REST, SITE

__all__ = ["DRIFT_MODEL", "Commands", "KinematicConfig", "State", "displacement_jacobian"]

Commands = Literal["joint-delta", "joint", "cartesian-delta"]
State = Literal["pose", "joints", "rest"]

_BATCH = 256
_BUILT_IN = "widowx-250"


@dataclass(frozen=True, kw_only=True)
class KinematicConfig(DriftModel):
    """Settings of the arm; the defaults are the WidowX 250 of the tabletop scene.

    Attributes:
        robot: ``"widowx-250"``, or the path of an MJCF file without includes.
        joints: Names of the hinge joints on the way to the end-effector, in order.
        site: Site that marks the end-effector; its x axis is the approach axis, fingers travel along its y axis.
        rest: Joint positions [rad] that inverse kinematics starts from, and the state where none is given.
        action_space: What the dimensions of an action are.
        lever: Distance from the end-effector to the tool point along the approach axis [m], not negative.
        gripper_travel: Travel of each fingertip per unit of the gripper's action [m], positive.
        half_gap: Distance from the tool point to each fingertip [m]; 0 judges the tool point alone.
        damping: Damping of the least squares step that an error goes through, in the Jacobian's units, positive; the
            tabletop's.
        state: What ``observation.state`` holds: ``"pose"`` for the end-effector's position and Euler angles,
            ``"joints"`` for the joint positions [rad], in order, or ``"rest"`` when it holds something else and every
            chunk starts at `rest`. With absolute joint commands it is not looked at.
    """

    method: ClassVar[str] = "kinematic"

    robot: str = _BUILT_IN
    joints: tuple[str, ...] = JOINTS
    site: str = SITE
    rest: tuple[float, ...] = REST
    action_space: Commands = "cartesian-delta"
    lever: float = 0.1
    gripper_travel: float = 0.011
    half_gap: float = 0.0
    damping: float = 0.01
    state: State = "pose"

    def __post_init__(self) -> None:
        for label in ("joints", "rest"):
            object.__setattr__(self, label, tuple(getattr(self, label)))  # JSON knows lists only
        for label, choices in (("action_space", get_args(Commands)), ("state", get_args(State))):
            if getattr(self, label) not in choices:
                raise RecipeError(
                    f"{label} of the kinematic drift model must be one of {', '.join(choices)}, got "
                    f"{getattr(self, label)!r}. Choose what the policy's numbers are."
                )
        if not self.joints or len(self.rest) != len(self.joints) or not all(map(math.isfinite, self.rest)):
            raise RecipeError(
                f"rest of the kinematic drift model must hold a position for each of {len(self.joints)} joints, got "
                f"{list(self.rest)}. Give one angle [rad] per joint, and at least one joint."
            )
        for label in ("lever", "half_gap"):
            value = getattr(self, label)
            if not (math.isfinite(value) and value >= 0):
                raise RecipeError(
                    f"{label} of the kinematic drift model must be 0 or more metres, got {value}. Measure it on the "
                    "gripper."
                )
        for label in ("gripper_travel", "damping"):
            value = getattr(self, label)
            if not (math.isfinite(value) and value > 0):
                raise RecipeError(
                    f"{label} of the kinematic drift model must be positive, got {value}. Keep the default for the "
                    "tabletop's arm."
                )

    def chain(self) -> SerialChain:
        """The arm.

        Raises:
            InvalidInputError: The file cannot be read or does not hold these joints and this site.
        """
        if self.robot == _BUILT_IN:
            return read_chain(MJCF, self.joints, self.site)
        try:
            xml = Path(self.robot).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInputError(
                f"robot must be {_BUILT_IN} or a readable MJCF file, got {self.robot!r}: {error}. Correct the path."
            ) from error
        return read_chain(xml, self.joints, self.site)

    def refuses(self, space: ActionSpace) -> str | None:
        """Whatever is not what `action_space` says, for this arm's joints; see `DriftModel`."""
        if self.action_space == "cartesian-delta":
            return refusal(space, END_EFFECTOR_DELTA)
        joint = ActionDimension(kind=self.action_space, unit="rad")
        return refusal(space, (*(joint for _ in self.joints), ActionDimension(kind="gripper", unit="1")))

    def weights(
        self,
        actions: Float[Tensor, "n action"],
        unit: Float[Tensor, " action"] | None = None,
        *,
        space: ActionSpace,
    ) -> Float[Tensor, " action"]:
        """Diagonal of the metric of a single action from the resting joints; see `DriftModel`."""
        return normalised(self.metric(actions.unsqueeze(-2), None, space=space, steps=1), unit)

    def metric(
        self,
        chunks: Float[Tensor, "n chunk action"],
        states: Float[Tensor, "n state"] | None,
        *,
        space: ActionSpace,
        steps: int,
    ) -> Float[Tensor, "chunk*action chunk*action"]:
        """The matrix G; see `DriftModel`.

        Raises:
            InvalidInputError: As in `DriftModel`, and when the arm cannot reach a state.
        """
        chunks = checked_chunks(self, chunks, space=space, steps=steps)
        chain = self.chain()
        joints = self._joints_at(chain, states, len(chunks))
        return mean_square(
            (
                displacement_jacobian(
                    some,
                    start,
                    chain,
                    action_space=self.action_space,
                    lever=self.lever,
                    gripper_travel=self.gripper_travel,
                    half_gap=self.half_gap,
                    damping=self.damping,
                )
                for some, start in zip(chunks.split(_BATCH), joints.split(_BATCH), strict=True)
            ),
            steps,
        )

    def _joints_at(
        self, chain: SerialChain, states: Float[Tensor, "n state"] | None, n: int
    ) -> Float[Tensor, "n joints"]:
        """Joint positions before each chunk."""
        rest = torch.tensor(self.rest, dtype=torch.float64).expand(n, -1)
        if states is None or self.state == "rest" or self.action_space == "joint":
            return rest
        if self.state == "joints":
            return checked_states(states, n, width=len(self.joints), meaning="joint positions")[:, : len(self.joints)]
        states = checked_poses(states, n)
        rotation = matrix_from_euler(states[:, 3:6]) @ pointing_down()
        joints, reached = chain.inverse(rest, states[:, :3], rotation)
        if not bool(reached.all()):
            first = int((~reached).nonzero()[0])
            raise InvalidInputError(
                f"state must be a pose that the arm reaches, got {states[first, :6].tolist()}. Check the units, "
                "choose the se3 drift model, or set state to 'joints' or 'rest'."
            )
        return joints


def displacement_jacobian(
    chunks: Float[Tensor, "n chunk action"],
    joints: Float[Tensor, "n joints"],
    chain: SerialChain,
    *,
    action_space: Commands,
    lever: float,
    gripper_travel: float,
    half_gap: float,
    damping: float,
) -> Float[Tensor, "n chunk 7 chunk*action"]:
    """Derivative of tool point and fingertips after every action with respect to the whole chunk.

    In joint space it is exact: J(q_0 + sum of deltas) for every delta so far, or J(q) for the last absolute command
    alone. In Cartesian space it is
    J(q_k) J(q_k)^+ times the exact derivative of the commanded pose, q_k the joints that reach the demonstrated pose
    (or come nearest).

    Args:
        chunks: float64 action chunks.
        joints: float64 joint positions before each chunk [rad].
        chain: The arm.
        action_space: What the dimensions of an action are.
        lever: Distance from the end-effector to the tool point along its x axis [m].
        gripper_travel: Travel of each fingertip per unit of the gripper's action [m].
        half_gap: Distance from the tool point to each fingertip [m].
        damping: Damping of the least squares step, in the Jacobian's units.

    Returns:
        float64; rows as `daptq.drift.contract.ROWS_PER_STEP` names them [m], columns action after action.
    """
    n, chunk, width = chunks.shape
    result = torch.zeros(n, chunk, ROWS_PER_STEP, chunk, width, dtype=torch.float64)
    if action_space == "joint-delta":
        for k in range(chunk):
            joints = joints + chunks[:, k, :-1]
            result[:, k, :, : k + 1, :-1] = _fingertips(chain, joints, lever, half_gap)[:, :, None]
    elif action_space == "joint":
        for k in range(chunk):
            result[:, k, :, k, :-1] = _fingertips(chain, chunks[:, k, :-1], lever, half_gap)
    else:
        deltas = chunks[..., :-1]
        positions, rotations = compose(deltas, *chain.forward(joints), "base")
        poses = displacements(deltas, positions, rotations, "base")
        for k in range(chunk):
            joints, _ = chain.inverse(joints, positions[:, k + 1], rotations[:, k + 1])
            followed = _fingertips(chain, joints, lever, half_gap) @ damped_inverse(chain.jacobian(joints), damping)
            result[:, k, :, :, :-1] = torch.einsum("nxy,nyjc->nxjc", followed, poses[:, k])
    steps = torch.arange(chunk)
    result[:, steps, 3, steps, -1] = gripper_travel
    return result.flatten(3)


def _fingertips(
    chain: SerialChain, joints: Float[Tensor, "n joints"], lever: float, half_gap: float
) -> Float[Tensor, "n 7 joints"]:
    """Derivative of tool point and fingertips with respect to the joints; rows as in `displacement_jacobian`."""
    tool, tip = (chain.jacobian(joints, torch.tensor([lever, y, 0.0], dtype=torch.float64)) for y in (0.0, half_gap))
    return torch.cat([tool[:, :3], torch.zeros_like(tool[:, :1]), (tip - tool)[:, :3]], dim=1)


DRIFT_MODEL = KinematicConfig
