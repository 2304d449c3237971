"""Random projections of action chunks whose squared derivative is, on average, the drift.

The module does not know what is differentiated with respect to: weights, or a representation.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from daptq.errors import InvalidInputError
from daptq.numerics.symmetric import symmetric_part

__all__ = ["metric_root", "probe", "probe_generator"]

_ROUNDING = 1e-9  # of the largest eigenvalue: what a float64 product leaves of an exact zero, with a wide margin


def metric_root(metric: Float[Tensor, "k k"]) -> Float[Tensor, "k k"]:
    """A root L of a positive semi-definite matrix, L L^T = G, of any rank.

    Args:
        metric: Symmetric positive semi-definite matrix G.

    Returns:
        float64 (k, k).

    Raises:
        InvalidInputError: The matrix is not square, finite, symmetric and positive semi-definite.
    """
    square = metric.dim() == 2 and metric.shape[0] == metric.shape[1] > 0
    if not (square and bool(torch.isfinite(metric).all())):
        raise InvalidInputError(
            f"metric must be a finite square matrix, got shape {tuple(metric.shape)}. Pass a drift model's metric."
        )
    values = metric.to(torch.float64)
    largest = float(values.abs().max())
    if float((values - values.mT).abs().max()) > _ROUNDING * largest:
        raise InvalidInputError("metric must be symmetric, got a matrix that is not. Pass a drift model's metric.")
    eigenvalues, vectors = torch.linalg.eigh(symmetric_part(values))
    if float(eigenvalues[0]) < -_ROUNDING * len(values) * largest:
        raise InvalidInputError(
            f"metric must be positive semi-definite, got the eigenvalue {float(eigenvalues[0])}. Pass a drift model's "
            "metric."
        )
    return vectors * eigenvalues.clamp(min=0.0).sqrt()


def probe(
    chunk: Float[Tensor, "b chunk action"], metric_root: Float[Tensor, "k k"], generator: torch.Generator
) -> Float[Tensor, ""]:
    """Random projection of predicted chunks whose squared derivative is, on average, the drift.

    It is sum_s xi_s^T L^T a_s / sqrt(b) with xi_s standard normal and independent. The projections of different samples
    are independent with mean zero, so that in the expectation of a squared derivative only the terms of one sample
    remain: one backward pass serves a whole batch.

    Args:
        chunk: Predicted chunks a_s, physical units, differentiable.
        metric_root: L with L L^T = G, k = chunk * action.
        generator: Source of xi, on the CPU.

    Returns:
        float64 scalar [mm], differentiable.

    Raises:
        InvalidInputError: The shapes do not belong together.
    """
    size = chunk[0].numel() if len(chunk) else 0
    if chunk.dim() != 3 or metric_root.shape != (size, size):
        raise InvalidInputError(
            f"chunk and metric root must have shapes (b, chunk, action) and (k, k) with k = chunk * action, got "
            f"{tuple(chunk.shape)} and {tuple(metric_root.shape)}. Compute the metric for chunks of this shape."
        )
    draws = torch.randn(len(chunk), size, generator=generator, dtype=torch.float64)
    directions = draws @ metric_root.mT.to(draws) / math.sqrt(len(chunk))
    return (directions.to(chunk.device) * chunk.flatten(1).to(torch.float64)).sum()


def probe_generator(generator: torch.Generator) -> torch.Generator:
    """The source of random projections that goes with a batch's source of noise."""
    return torch.Generator().manual_seed(generator.initial_seed() ^ 0x9E3779B9)
