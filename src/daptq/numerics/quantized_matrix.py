"""A matrix of integers with the scales, and where it is asymmetric the zero points, that give them their meaning.

    w = scale[row, group] * (integer - zero_point[row, group])

A row is cut into consecutive groups of columns, the last of which may be shorter; group size 0 makes a whole row one
group. Symmetric integers of b bits lie in [-(2^(b-1) - 1), 2^(b-1) - 1], asymmetric ones, and their zero points, in
[-2^(b-1), 2^(b-1) - 1], so zero is exact in both. The module does not know how scales and zero points were chosen.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from daptq.errors import InvalidInputError
from daptq.numerics.grid import largest_integer

__all__ = [
    "GROUP_SIZES",
    "QuantizedMatrix",
    "dequantize_matrix",
    "ends",
    "group_columns",
    "group_count",
    "quantize_matrix",
    "spread",
]

# 0: one group for each row.
GROUP_SIZES = (0, 32, 64, 128)


@dataclass(frozen=True, kw_only=True, eq=False)
class QuantizedMatrix:
    """Integers with scales.

    Attributes:
        integers: int8 (out, in).
        scale: float32 (out, groups), positive.
        zero_point: int8 (out, groups), or None for a symmetric grid.
        num_bits: 2 to 8.
        group_size: Columns of a group, 0 for one group in each row.
    """

    integers: Int8[Tensor, "out in"]
    scale: Float[Tensor, "out groups"]
    zero_point: Int8[Tensor, "out groups"] | None = None
    num_bits: int
    group_size: int = 0

    def __post_init__(self) -> None:
        rows, columns = self.integers.shape
        expected = (rows, group_count(columns, self.group_size))
        if tuple(self.scale.shape) != expected:
            raise InvalidInputError(
                f"scale must have shape {expected}, one entry for each group of a row, got {tuple(self.scale.shape)}. "
                "Compute it per group."
            )
        if not bool((torch.isfinite(self.scale) & (self.scale > 0)).all()):
            raise InvalidInputError("scale must be positive and finite, got other values. Give groups of zeros 1.")
        if self.zero_point is not None and tuple(self.zero_point.shape) != expected:
            raise InvalidInputError(
                f"zero_point must have shape {expected}, like scale, got {tuple(self.zero_point.shape)}. "
                "Compute it per group."
            )

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Float[Tensor, "out in"]:
        """The values that the integers stand for: scale * (integer - zero point), rounded once.

        Args:
            dtype: Floating-point dtype of the result.
        """
        return dequantize_matrix(self.integers, self.scale, self.zero_point, self.group_size, dtype)


def dequantize_matrix(
    integers: Int8[Tensor, "out in"],
    scale: Float[Tensor, "out groups"],
    zero_point: Int8[Tensor, "out groups"] | None,
    group_size: int,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "out in"]:
    """`QuantizedMatrix.dequantize` of parts that were checked before."""
    columns = integers.shape[1]
    values = integers.to(dtype)
    if zero_point is not None:
        values = values.sub_(spread(zero_point.to(dtype), columns, group_size))
    return values.mul_(spread(scale.to(dtype), columns, group_size))


def quantize_matrix(
    weight: Float[Tensor, "out in"],
    scale: Float[Tensor, "out groups"],
    zero_point: Int8[Tensor, "out groups"] | None,
    num_bits: int,
    group_size: int = 0,
) -> QuantizedMatrix:
    """Rounds a matrix to the nearest points of its grids, halves to even; values past an end go to that end.

    Args:
        weight: (out, in) finite values.
        scale: float32 (out, groups), positive.
        zero_point: int8 (out, groups), or None for symmetric grids.
        num_bits: Bits of the grids, 2 to 8.
        group_size: Columns of a group, 0 for one group in each row.

    Returns:
        The matrix; |weight - value| <= scale / 2 wherever nothing was clipped.

    Raises:
        InvalidInputError: A value is not finite, a scale is not positive, or the shapes do not belong together.
    """
    if weight.dim() != 2 or not bool(torch.isfinite(weight).all()):
        raise InvalidInputError("values to quantize must be a finite matrix, got another one. Check the weights.")
    expected = (len(weight), group_count(weight.shape[1], group_size))
    if tuple(scale.shape) != expected:
        raise InvalidInputError(
            f"scale must have shape {expected}, one entry for each group of a row, got {tuple(scale.shape)}. "
            "Compute it per group."
        )
    columns = weight.shape[1]
    low, high = ends(num_bits, zero_point)
    steps = torch.round(weight / spread(scale.to(weight), columns, group_size))
    if zero_point is None:
        integers = steps.clamp_(low, high)
    else:
        offset = spread(zero_point.to(weight), columns, group_size)
        integers = steps.add_(offset).clamp_(low, high)
    return QuantizedMatrix(
        integers=integers.to(torch.int8), scale=scale, zero_point=zero_point, num_bits=num_bits, group_size=group_size
    )


def ends(num_bits: int, zero_point: Tensor | None) -> tuple[int, int]:
    """The smallest and the largest stored integer: the symmetric grid leaves out the most negative one.

    Raises:
        InvalidInputError: There is no grid of `num_bits`.
    """
    largest = largest_integer(num_bits)
    return (-largest if zero_point is None else -largest - 1), largest


def group_count(in_features: int, group_size: int) -> int:
    """Number of groups in a row of `in_features` columns.

    Raises:
        InvalidInputError: There are no groups of this size.
    """
    if type(group_size) is not int or group_size not in GROUP_SIZES:
        raise InvalidInputError(
            f"group_size must be one of {', '.join(map(str, GROUP_SIZES))}, got {group_size!r}. "
            "Choose 0 for one scale per output channel."
        )
    return -(-in_features // group_size) if group_size else 1


def group_columns(in_features: int, group_size: int) -> list[slice]:
    """The columns of each group."""
    width = group_size or in_features
    return [
        slice(start * width, min((start + 1) * width, in_features))
        for start in range(group_count(in_features, group_size))
    ]


def spread(values: Float[Tensor, "out groups"], in_features: int, group_size: int) -> Float[Tensor, "out columns"]:
    """The value of each group at each of its columns: (out, in), or (out, 1) where each row is one group."""
    return values.repeat_interleave(group_size, dim=1)[:, :in_features] if values.shape[1] > 1 else values
