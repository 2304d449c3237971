"""Symmetric integer grids: rounding to them, the way back, and both in one step (fake quantization).

A grid of b bits holds the integers -(2^(b-1) - 1) … 2^(b-1) - 1: the most negative two's-complement value is not used,
so the grid is symmetric and zero is exact. The module does not know how a scale was found.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from daptq.errors import InvalidInputError

__all__ = ["MAX_BITS", "MIN_BITS", "dequantize", "fake_quantize", "largest_integer", "quantize_symmetric"]

MIN_BITS = 2
MAX_BITS = 8


def largest_integer(num_bits: int) -> int:
    """The largest integer of the symmetric grid, 2^(num_bits - 1) - 1.

    Raises:
        InvalidInputError: `num_bits` is not an integer between 2 and 8.
    """
    if not isinstance(num_bits, int) or not MIN_BITS <= num_bits <= MAX_BITS:
        raise InvalidInputError(
            f"num_bits must be an integer between {MIN_BITS} and {MAX_BITS}, got {num_bits!r}. Choose for example 4."
        )
    return int(2 ** (num_bits - 1) - 1)


def quantize_symmetric(
    values: Float[Tensor, "*rows n"], scale: Float[Tensor, "*rows 1"], num_bits: int
) -> Int8[Tensor, "*rows n"]:
    """Rounds to the grid: clip(round(values / scale)), halves to even.

    Args:
        values: (…, n) finite values.
        scale: (…, 1) positive scale of each row.
        num_bits: Bits of the grid, 2 to 8.

    Returns:
        int8 (…, n) integers; |values - scale * integers| <= scale / 2 wherever nothing was clipped.

    Raises:
        InvalidInputError: A scale is missing, not positive or not finite, or a value is not finite.
    """
    limit = largest_integer(num_bits)
    _require_scale_per_row(values, scale)
    if not bool(torch.isfinite(values).all()):
        raise InvalidInputError("values to quantize must be finite, got NaN or infinity. Check the weights or data.")
    return torch.round(values / scale).clamp_(-limit, limit).to(torch.int8)


def dequantize(integers: Int8[Tensor, "*rows n"], scale: Float[Tensor, "*rows 1"]) -> Float[Tensor, "*rows n"]:
    """The values that integers stand for, integers * scale, in the scale's dtype.

    Args:
        integers: (…, n) integers.
        scale: (…, 1) scale of each row.

    Raises:
        InvalidInputError: There is not exactly one positive finite scale for each row.
    """
    _require_scale_per_row(integers, scale)
    return integers.to(scale.dtype) * scale


def fake_quantize(
    values: Float[Tensor, "*rows n"], scale: Float[Tensor, "*rows 1"], num_bits: int
) -> Float[Tensor, "*rows n"]:
    """The nearest values that the grid can express, still in floating point (fake quantization).

    Args:
        values: (…, n) finite values.
        scale: (…, 1) positive scale of each row.
        num_bits: Bits of the grid, 2 to 8.

    Returns:
        (…, n), dtype of `values`.

    Raises:
        InvalidInputError: As `quantize_symmetric`.
    """
    return quantize_symmetric(values, scale, num_bits).to(values.dtype) * scale.to(values.dtype)


def _require_scale_per_row(values: Tensor, scale: Tensor) -> None:
    """Refuses scales that would only fit by broadcasting: a (1, 1) scale on four rows looks right and is not."""
    expected = (*values.shape[:-1], 1)
    if tuple(scale.shape) != expected:
        raise InvalidInputError(
            f"scale must have shape {expected}, one entry for each row, got {tuple(scale.shape)}. Compute it per row."
        )
    if not bool((torch.isfinite(scale) & (scale > 0)).all()):
        raise InvalidInputError("scale must be positive and finite, got other values. Give rows of zeros the scale 1.")
