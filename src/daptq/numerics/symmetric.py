"""Matrices that are symmetric up to rounding."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

__all__ = ["symmetric_part"]


def symmetric_part(matrix: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """(M + M^T) / 2, in the dtype and on the device of M."""
    return 0.5 * (matrix + matrix.mT)
