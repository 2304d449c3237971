"""The contract of a drift model: what an error in an action chunk does to the point that the robot works with.

A drift model (one file of `daptq.drift.models`, which names its configuration ``DRIFT_MODEL``) turns an error e of a
flattened action chunk, in physical action units, into the square of a displacement, e^T G e [mm^2]. Everything that
asks "how much does this error matter" reads the same matrix G, so that another robot is another G and nothing else. A
model says which action spaces it reads.

A model is a linearisation about the demonstrated chunk: it knows neither contacts nor how the policy answers to what an
error did to its next picture.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from daptq.action_space import ActionSpace, agree, described
from daptq.errors import InvalidInputError
from daptq.methods import Method
from daptq.numerics.symmetric import symmetric_part

__all__ = [
    "ROWS_PER_STEP",
    "SQUARE_MILLIMETRES",
    "DriftModel",
    "checked_chunks",
    "checked_poses",
    "checked_states",
    "mean_square",
    "normalised",
    "refusal",
]

SQUARE_MILLIMETRES = 1e6
"""Square millimetres in a square metre."""

ROWS_PER_STEP = 7
"""Rows of a displacement Jacobian per action [m]: x, y, z of the tool point, the travel of each fingertip, and x, y, z
of how a fingertip turns about the tool point.

When the tool point moves by d, the gripper turns by w and each finger travels by t, the fingertips at plus and minus
h u (u the unit vector along which fingers travel) move by d + (h w x u + t u) and d - (h w x u + t u). As w x u is
orthogonal to u, the mean of the two squares is |d|^2 + t^2 + |h w x u|^2: rows of their own.
"""


class DriftModel(Method):
    """Settings of one drift model; a frozen keyword-only dataclass."""

    @abstractmethod
    def refuses(self, space: ActionSpace) -> str | None:
        """Why the model does not read actions of this space, in the form "X, not Y"; None where it does."""

    @abstractmethod
    def weights(
        self,
        actions: Float[Tensor, "n action"],
        unit: Float[Tensor, " action"] | None = None,
        *,
        space: ActionSpace,
    ) -> Float[Tensor, " action"]:
        """Weight of every action dimension in the drift loss (eq. 18 of arXiv 2604.11572).

        Args:
            actions: Demonstrated actions, physical units, n at least 1.
            unit: Physical units per normalised unit of every dimension, since the loss weighs normalised errors;
                0 for one that never varies, None for ones.
            space: What the dimensions of an action are; one that the model does not refuse.

        Returns:
            float64, not negative, mean 1.

        Raises:
            InvalidInputError: `actions` or `unit` has the wrong shape, is empty or is not finite.
        """

    @abstractmethod
    def metric(
        self,
        chunks: Float[Tensor, "n chunk action"],
        states: Float[Tensor, "n state"] | None,
        *,
        space: ActionSpace,
        steps: int,
    ) -> Float[Tensor, "chunk*action chunk*action"]:
        """The matrix G of the squared displacement that an error of the chunk causes.

        Args:
            chunks: Demonstrated action chunks, physical units, n at least 1.
            states: ``observation.state`` before each chunk; a model that looks at it says in what form it must be.
                None for the model's own resting state.
            space: What the dimensions of an action are; one that the model does not refuse.
            steps: How many actions of a chunk count, from the first one on.

        Returns:
            float64, symmetric, positive semi-definite, mm^2 per product of two physical action units. With e flattened
            action after action, e^T G e is the squared displacement after an action, averaged over the first `steps`
            actions and over the n chunks. Rows and columns of later actions are zero.

        Raises:
            InvalidInputError: The shapes do not belong together, a value is not finite, or `steps` is not within the
                chunk.
        """


def refusal(space: ActionSpace, expected: ActionSpace) -> str | None:
    """Why a space is not the one that a model of a single arm reads; None where it is.

    Args:
        space: What the dimensions of an action are.
        expected: What the model reads, of one arm; see `daptq.action_space.agree`.
    """
    if agree(space, expected):
        return None
    return f"it reads {described(expected)} of one arm, not {described(space)}"


def checked_chunks(
    model: DriftModel, chunks: Float[Tensor, "n chunk action"], *, space: ActionSpace, steps: int
) -> Float[Tensor, "n chunk action"]:
    """Chunks in float64, after what every drift model asks of them.

    Args:
        model: The model that reads them.
        chunks: Action chunks.
        space: What the dimensions of an action are.
        steps: How many actions count.

    Raises:
        InvalidInputError: The model refuses the space, the chunks do not have its dimensions, a value is not finite,
            or `steps` is not within the chunk.
    """
    if (reason := model.refuses(space)) is not None:
        raise InvalidInputError(f"drift model {model.method} must read the action space: {reason}. Choose another.")
    if chunks.dim() != 3 or chunks.shape[2] != len(space) or 0 in chunks.shape:
        raise InvalidInputError(
            f"action chunks must have shape (n, chunk, {len(space)}) with {described(space)}, got "
            f"{tuple(chunks.shape)}. Pass chunks of this action space."
        )
    if not 1 <= steps <= chunks.shape[1]:
        raise InvalidInputError(
            f"steps must be between 1 and the {chunks.shape[1]} actions of a chunk, got {steps}. Pass the number of "
            "actions that are executed."
        )
    return _finite(chunks, "action chunks")


def checked_states(
    states: Float[Tensor, "n state"], count: int, *, width: int, meaning: str
) -> Float[Tensor, "n state"]:
    """States in float64 that begin with what a drift model reads.

    Args:
        states: States before each chunk.
        count: Number of chunks.
        width: How many numbers the model reads.
        meaning: What they are, for the message.

    Raises:
        InvalidInputError: There is not one state for each chunk, a state is too short, or a value is not finite.
    """
    if states.dim() != 2 or len(states) != count or states.shape[1] < width:
        raise InvalidInputError(
            f"states must have shape ({count}, {width} or more) and begin with {meaning}, got {tuple(states.shape)}. "
            "Set the drift model's state to what they hold, or to 'rest'."
        )
    return _finite(states, "states")


def checked_poses(states: Float[Tensor, "n state"], count: int) -> Float[Tensor, "n state"]:
    """States in float64 that begin with an end-effector's pose.

    The pose is position [m] and intrinsic XYZ Euler angles [rad] relative to a gripper that points straight down.

    Args:
        states: States before each chunk.
        count: Number of chunks.

    Raises:
        InvalidInputError: As in `checked_states`.
    """
    return checked_states(states, count, width=6, meaning="an end-effector's position and Euler angles")


def _finite(values: Float[Tensor, "..."], label: str) -> Float[Tensor, "..."]:
    """The values in float64; refuses NaN and infinity."""
    if not bool(torch.isfinite(values).all()):
        raise InvalidInputError(f"{label} must be finite, got NaN or infinity. Remove those rows.")
    return values.to(torch.float64)


def mean_square(jacobians: Iterable[Float[Tensor, "n chunk row k"]], steps: int) -> Float[Tensor, "k k"]:
    """G = 1e6 mean over samples of D^T D / steps, D the stacked displacement Jacobian of the first `steps` actions.

    Args:
        jacobians: Batches of displacement Jacobians, [m] per action unit; at least one sample in all.
        steps: Actions that count.

    Returns:
        float64, symmetric, mm^2.
    """
    total: Tensor | None = None
    samples = 0
    for jacobian in jacobians:
        rows = jacobian[:, :steps].flatten(0, 2)
        product = rows.mT @ rows
        total = product if total is None else total + product
        samples += len(jacobian)
    assert total is not None, "the caller gives at least one sample"
    return symmetric_part(total * (SQUARE_MILLIMETRES / (samples * steps)))


def normalised(metric: Float[Tensor, "action action"], unit: Float[Tensor, " action"] | None) -> Float[Tensor, " a"]:
    """Drift weights from the metric of a single step: its diagonal in normalised units, scaled to mean 1.

    Args:
        metric: float64 matrix G of one action, mm^2 per squared physical unit, not zero.
        unit: Physical units per normalised unit, 0 for a dimension that never varies; None for ones.

    Raises:
        InvalidInputError: `unit` does not hold one number of 0 or more for every dimension, or nothing is left of the
            metric in these units.
    """
    raw = metric.diagonal()
    if unit is not None:
        usable = unit.shape == raw.shape and bool((torch.isfinite(unit) & (unit >= 0)).all())
        if not (usable and bool((raw * unit.to(raw)).any())):
            raise InvalidInputError(
                f"unit must hold {len(raw)} numbers of 0 or more, one of them positive, got {unit.tolist()}. Pass the "
                "physical units per normalised unit of every action dimension."
            )
        raw = raw * unit.to(raw).square()
    return raw / raw.mean()
