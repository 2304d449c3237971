"""The contract of a drift model: what an error in an action chunk does to the point that the robot works with.

A drift model (one file beside this one, which names its configuration ``DRIFT_MODEL``) turns an error e of a flattened
action chunk, in physical action units, into the square of a displacement, e^T G e [mm^2]. Everything that asks "how
much does this error matter" reads the same matrix G, so that another robot is another G and nothing else.

A model is a linearisation about the demonstrated chunk: it knows neither contacts nor how the policy answers to what an
error did to its next picture.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from daptq.errors import InvalidInputError

__all__ = ["ROWS_PER_STEP", "SQUARE_MILLIMETRES", "DriftModel", "checked_chunks", "mean_square", "normalised"]

SQUARE_MILLIMETRES = 1e6
"""Square millimetres in a square metre."""

ROWS_PER_STEP = 7
"""Rows of a displacement Jacobian per action [m]: x, y, z of the tool point, the travel of each fingertip, and x, y, z
of how a fingertip turns about the tool point.

When the tool point moves by d, the gripper turns by w and each finger travels by t, the fingertips at plus and minus
h u (u the unit vector along which fingers travel) move by d + (h w x u + t u) and d - (h w x u + t u). As w x u is
orthogonal to u, the mean of the two squares is |d|^2 + t^2 + |h w x u|^2: rows of their own.
"""


class DriftModel(ABC):
    """Settings of one drift model; a frozen keyword-only dataclass.

    Attributes:
        method: Name of the model in the catalog and in a recipe.
    """

    method: ClassVar[str]

    @abstractmethod
    def weights(
        self, actions: Float[Tensor, "n action"], unit: Float[Tensor, " action"] | None = None
    ) -> Float[Tensor, " action"]:
        """Weight of every action dimension in the drift loss (eq. 18 of arXiv 2604.11572).

        Args:
            actions: Demonstrated actions, physical units, n at least 1.
            unit: Physical units per normalised unit of every dimension, since the loss weighs normalised errors;
                0 for one that never varies, None for ones.

        Returns:
            float64, not negative, mean 1.

        Raises:
            InvalidInputError: `actions` or `unit` has the wrong shape, is empty or is not finite.
        """

    @abstractmethod
    def metric(
        self, chunks: Float[Tensor, "n chunk action"], states: Float[Tensor, "n state"] | None, *, steps: int
    ) -> Float[Tensor, "chunk*action chunk*action"]:
        """The matrix G of the squared displacement that an error of the chunk causes.

        Args:
            chunks: Demonstrated action chunks, physical units, n at least 1.
            states: ``observation.state`` before each chunk: position [m], intrinsic XYZ Euler angles [rad] relative to
                a gripper that points straight down, gripper. None for the model's own resting state.
            steps: How many actions of a chunk are executed.

        Returns:
            float64, symmetric, positive semi-definite, mm^2 per product of two physical action units. With e flattened
            action after action, e^T G e is the squared displacement after an action, averaged over the first `steps`
            actions and over the n chunks. Rows and columns of later actions are zero.

        Raises:
            InvalidInputError: The shapes do not belong together, a value is not finite, or `steps` is not within the
                chunk.
        """


def checked_chunks(
    chunks: Float[Tensor, "n chunk action"],
    states: Float[Tensor, "n state"] | None,
    *,
    width: int,
    steps: int,
    layout: str,
) -> tuple[Float[Tensor, "n chunk action"], Float[Tensor, "n state"] | None]:
    """Chunks and states in float64, after what every drift model asks of them.

    Args:
        chunks: Action chunks.
        states: States, or None.
        width: Action dimensions that the model reads.
        steps: How many actions are executed.
        layout: What the dimensions are, for the message.

    Raises:
        InvalidInputError: The shapes do not belong together, a value is not finite, or `steps` is not within the chunk.
    """
    if chunks.dim() != 3 or chunks.shape[2] != width or 0 in chunks.shape:
        raise InvalidInputError(
            f"action chunks must have shape (n, chunk, {width}) with {layout}, got {tuple(chunks.shape)}. Choose the "
            "drift model of this action space."
        )
    if not 1 <= steps <= chunks.shape[1]:
        raise InvalidInputError(
            f"steps must be between 1 and the {chunks.shape[1]} actions of a chunk, got {steps}. Pass the number of "
            "actions that are executed."
        )
    if states is not None and (states.dim() != 2 or states.shape[0] != len(chunks) or states.shape[1] < 6):
        raise InvalidInputError(
            f"states must have shape ({len(chunks)}, 6 or more), got {tuple(states.shape)}. Pass the observation.state "
            "of every chunk, or None."
        )
    for label, values in (("action chunks", chunks), ("states", states)):
        if values is not None and not bool(torch.isfinite(values).all()):
            raise InvalidInputError(f"{label} must be finite, got NaN or infinity. Remove those rows.")
    return chunks.to(torch.float64), None if states is None else states.to(torch.float64)


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
    scaled = total * (SQUARE_MILLIMETRES / (samples * steps))
    return (scaled + scaled.mT) / 2


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
    weights: Tensor = raw / raw.mean()
    return weights
