"""How far the representation of a quantized policy is from that in full precision, with a map or without one."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from daptq.errors import InvalidInputError

__all__ = ["interface_error"]


def interface_error(
    compensated: Float[Tensor, "n d"],
    reference: Float[Tensor, "n d"],
    mean: Float[Tensor, " d"],
    sensitivity: Float[Tensor, "d d"] | None = None,
) -> float:
    """Mean squared error of the representation, relative to its variance in full precision.

    Args:
        compensated: (n, d) representation of the quantized policy, after a map or without one.
        reference: (n, d) representation of the full-precision policy on the same inputs in the same order.
        mean: (d,) mean in full precision over the calibration set.
        sensitivity: (d, d) symmetric positive semi-definite H that weighs squares, |e|^2 = e^T H e; None for identity.

    Returns:
        sum |z~ - z|^2 / sum |z - mean|^2; 0 is perfect, 1 is as bad as always answering the mean.

    Raises:
        InvalidInputError: The shapes differ, or there is no state.
    """
    if compensated.shape != reference.shape or len(reference) == 0:
        raise InvalidInputError(
            f"representations must have the same shape with at least one state, got {tuple(compensated.shape)} and "
            f"{tuple(reference.shape)}. Observe both on the same inputs."
        )
    truth = reference.to(torch.float64)
    error = _squares(compensated.to(torch.float64) - truth, sensitivity)
    spread = _squares(truth - mean, sensitivity)
    return float(error / spread.clamp_min(torch.finfo(torch.float64).tiny))


def _squares(errors: Float[Tensor, "n d"], sensitivity: Float[Tensor, "d d"] | None) -> Float[Tensor, ""]:
    """Sum of e^T H e over all rows e, never negative."""
    if sensitivity is None:
        return errors.square().sum()
    return (errors @ sensitivity.to(torch.float64) * errors).sum().clamp_min(0)
