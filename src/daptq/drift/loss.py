"""The loss that weighs an error of every action dimension by what it does to the robot (eq. 18, arXiv 2604.11572)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from daptq.errors import InvalidInputError

__all__ = ["drift_loss"]


def drift_loss(
    predicted_noise: Float[Tensor, "b chunk action"],
    noise: Float[Tensor, "b chunk action"],
    weights: Float[Tensor, " action"],
) -> Float[Tensor, ""]:
    """Noise-prediction error weighted by drift, eq. 18: summed over dimensions, averaged over everything else.

    Args:
        predicted_noise: Predicted noise, normalised action units.
        noise: The noise that was added, same shape.
        weights: (action_dim,) weights of a `DriftModel`.

    Returns:
        Scalar in the dtype of `predicted_noise`, differentiable.

    Raises:
        InvalidInputError: The shapes do not belong together.
    """
    if predicted_noise.shape != noise.shape or noise.shape[-1:] != weights.shape:
        raise InvalidInputError(
            "predicted noise, noise and weights must have shapes (…, k), (…, k) and (k,), got "
            f"{tuple(predicted_noise.shape)}, {tuple(noise.shape)} and {tuple(weights.shape)}. Give one weight per "
            "dimension."
        )
    squared = (predicted_noise - noise).square() * weights.to(predicted_noise)
    return squared.sum(dim=-1).mean()
