"""Matrices that are symmetric up to rounding."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["NEGLIGIBLE", "exact_symmetric_part", "symmetric_part"]

NEGLIGIBLE = 1e-12
"""An eigenvalue this small relative to the largest is rounding: along its direction there are no data, or no effect."""


def symmetric_part(matrix: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """(M + M^T) / 2, in the dtype and on the device of M."""
    return 0.5 * (matrix + matrix.mT)


def exact_symmetric_part(matrix: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """(M + M^T) / 2, float64 on the CPU, without gradient: what statistics that were read back need."""
    return symmetric_part(matrix.detach().to("cpu", torch.float64))
