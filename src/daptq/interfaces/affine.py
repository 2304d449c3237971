"""The affine map z -> M z + d of the representation at one interface.

This module does not know how a map was found, nor into which weights it folds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from daptq.errors import InvalidInputError

__all__ = ["AffineMap"]


@dataclass(frozen=True, kw_only=True, eq=False)
class AffineMap:
    """z~ = M z + d.

    Attributes:
        matrix: M, float64 (d, d).
        shift: d, float64 (d,).
    """

    matrix: Float[Tensor, "d d"]
    shift: Float[Tensor, " d"]

    def __post_init__(self) -> None:
        size = len(self.shift)
        if self.matrix.shape != (size, size) or self.shift.dim() != 1:
            raise InvalidInputError(
                f"matrix and shift of an affine map must have shapes (d, d) and (d,), got "
                f"{tuple(self.matrix.shape)} and {tuple(self.shift.shape)}. Give both for the same channels."
            )

    @classmethod
    def identity(cls, size: int) -> AffineMap:
        """The map that changes nothing."""
        return cls(matrix=torch.eye(size, dtype=torch.float64), shift=torch.zeros(size, dtype=torch.float64))

    @property
    def is_identity(self) -> bool:
        """Whether the map changes nothing."""
        unchanged = torch.equal(self.matrix, torch.eye(len(self.shift), dtype=self.matrix.dtype))
        return unchanged and not bool(self.shift.any())

    @property
    def is_diagonal(self) -> bool:
        """Whether every channel is mapped by itself."""
        return torch.equal(self.matrix, torch.diag(self.matrix.diagonal()))

    @property
    def condition_number(self) -> float:
        """Ratio of the largest to the smallest singular value of M; infinite when M is singular."""
        if self.is_diagonal:
            values = self.matrix.diagonal().abs().sort(descending=True).values
        else:
            values = torch.linalg.svdvals(self.matrix)
        return float(values[0] / values[-1])

    def __call__(self, z: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """M z + d in float64."""
        return z.to(torch.float64) @ self.matrix.mT + self.shift
