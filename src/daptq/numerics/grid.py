"""Symmetric integer grids, and the numbers of bits that a weight may have.

A grid of b bits holds the integers -(2^(b-1) - 1) … 2^(b-1) - 1: the most negative two's-complement value is not used,
so the grid is symmetric and zero is exact. The module does not know how a scale was found.
"""

from __future__ import annotations

from daptq.errors import InvalidInputError

__all__ = ["BFLOAT16", "MAX_BITS", "MIN_BITS", "largest_integer"]

MIN_BITS = 2
MAX_BITS = 8
# What a plan of bits gives a weight that stays in bfloat16.
BFLOAT16 = 16


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
