"""Block-diagonal rotation of the last axis by normalised Hadamard matrices.

Every block of `block` neighbouring channels is multiplied by H / sqrt(block), H the Hadamard matrix of Sylvester's
construction: H_1 = 1, H_2n = [[H_n, H_n], [H_n, -H_n]]. The matrix is symmetric and orthogonal, so the rotation is its
own inverse: y = W x = (W R)(R x). It spreads one large value over its block, which then needs a shorter grid. The
module does not know which channels belong together.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from daptq.errors import InvalidInputError

__all__ = ["fits", "hadamard", "rotate"]


def fits(length: int, block: int) -> bool:
    """Whether an axis of `length` channels is a whole number of blocks.

    Raises:
        InvalidInputError: `block` is not a power of two.
    """
    _require_power_of_two(block)
    return length % block == 0


def hadamard(block: int) -> Float[Tensor, "block block"]:
    """The symmetric orthogonal Hadamard matrix, float32 (block, block); exact for powers of four.

    Raises:
        InvalidInputError: `block` is not a power of two.
    """
    _require_power_of_two(block)
    index = torch.arange(block)
    # Entry (i, j) is -1 to the number of bits that i and j have in common.
    common = index[:, None] & index
    bits = sum(((common >> bit) & 1 for bit in range(block.bit_length())), torch.zeros_like(common))
    return (1 - 2 * (bits % 2)).to(torch.float32) / math.sqrt(block)


def rotate(x: Float[Tensor, "*batch n"], block: int) -> Float[Tensor, "*batch n"]:
    """Rotates each block of the last axis; applied twice it gives `x` back, up to rounding.

    Args:
        x: Float (…, n), n divisible by `block`.
        block: Channels of a block, a power of two; 1 changes nothing.

    Returns:
        (…, n), dtype of `x`.

    Raises:
        InvalidInputError: `block` is not a power of two, or n is not a whole number of blocks.
    """
    if not fits(x.shape[-1], block):
        raise InvalidInputError(
            f"last axis must be divisible by the block size {block}, got shape {tuple(x.shape)}. "
            "Leave the layer unrotated or choose a smaller block."
        )
    blocks: Tensor = x.unflatten(-1, (-1, block)) @ hadamard(block).to(x)
    return blocks.flatten(-2)


def _require_power_of_two(block: int) -> None:
    if type(block) is not int or block < 1 or block & (block - 1):
        raise InvalidInputError(f"block size must be a power of two, got {block!r}. Choose for example 16.")
