"""The loss that weighs an error of every action dimension by what it does to the robot (eq. 18, arXiv 2604.11572)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from daptq.errors import InvalidInputError
from daptq.policies.contract import Prediction

__all__ = ["drift_loss"]


def drift_loss(prediction: Prediction, weights: Float[Tensor, " action"]) -> Float[Tensor, ""]:
    """Squared prediction error weighted by drift, eq. 18: summed over dimensions, averaged over everything else.

    The paper's prediction is the noise of a diffusion step; the loss of a velocity or of the action itself is the same.

    Args:
        prediction: What the action head predicts and what it should predict.
        weights: (action_dim,) weights of a `DriftModel`.

    Returns:
        Scalar in the dtype of the prediction, differentiable.

    Raises:
        InvalidInputError: The shapes do not belong together.
    """
    predicted, target = prediction.predicted, prediction.target
    if predicted.shape != target.shape or target.shape[-1:] != weights.shape:
        raise InvalidInputError(
            "prediction, target and weights must have shapes (…, k), (…, k) and (k,), got "
            f"{tuple(predicted.shape)}, {tuple(target.shape)} and {tuple(weights.shape)}. Give one weight per "
            "dimension."
        )
    squared = (predicted - target).square() * weights.to(predicted)
    return squared.sum(dim=-1).mean()
