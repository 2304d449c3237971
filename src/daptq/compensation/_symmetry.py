"""The symmetric part of a matrix that is symmetric up to rounding: what statistics that were read back need."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from daptq.numerics import symmetric as numerics

__all__ = ["NEGLIGIBLE", "symmetric_part"]

# An eigenvalue this small relative to the largest is rounding: there are no data, or no effect, along its direction.
NEGLIGIBLE = 1e-12


def symmetric_part(matrix: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """(M + M^T) / 2, float64 on the CPU, without gradient."""
    return numerics.symmetric_part(matrix.detach().to("cpu", torch.float64))
