"""Classes of maps z -> M z + d: which of them fold exactly into the weights around an interface.

- ``"affine"``: every map;
- ``"affine-per-head"``: M is block diagonal, with one block for each head;
- ``"rotary"``: the maps that commute with rotary position embeddings: in every head, channels i and i + D/2 (D channels
  to a head) are turned and scaled together, as the complex number z_i + i z_(i + D/2) times a + i b; no shift;
- ``"diagonal"``: a gain and a shift for every channel;
- ``"gain"``: a gain for every channel, no shift.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from daptq.errors import InvalidInputError
from daptq.interfaces.affine import AffineMap

__all__ = ["MapClass", "belongs", "block_diagonal", "blocks_of", "require_class", "rotary_matrix", "rotary_pairs"]

MapClass = Literal["affine", "affine-per-head", "rotary", "diagonal", "gain"]


def belongs(affine: AffineMap, map_class: MapClass, heads: int = 1) -> bool:
    """Whether a map is of a class.

    Args:
        affine: The map.
        map_class: The class.
        heads: Number of heads that share the channels; counts for ``"affine-per-head"`` and ``"rotary"``.

    Raises:
        InvalidInputError: The channels cannot be shared by so many heads.
    """
    matrix, shifted = affine.matrix, bool(affine.shift.any())
    if map_class == "affine":
        return True
    if map_class == "affine-per-head":
        return torch.equal(matrix, block_diagonal(blocks_of(matrix, heads)))
    if map_class == "rotary":
        return not shifted and torch.equal(matrix, rotary_matrix(*rotary_pairs(matrix, heads)))
    return affine.is_diagonal and not (shifted and map_class == "gain")


def require_class(affine: AffineMap, map_class: MapClass, heads: int = 1) -> None:
    """Refuses a map that is not of the class.

    Raises:
        InvalidInputError: It is not, or the channels cannot be shared by so many heads.
    """
    if not belongs(affine, map_class, heads):
        raise InvalidInputError(
            f"map must be of the class {map_class!r} for {heads} heads, got another one. Solve it within this class."
        )


def blocks_of(matrix: Float[Tensor, "d d"], heads: int) -> Float[Tensor, "heads size size"]:
    """The diagonal blocks of a matrix, one for each head.

    Raises:
        InvalidInputError: The channels cannot be shared by so many heads.
    """
    size = _head_size(len(matrix), heads)
    return torch.stack([matrix[i : i + size, i : i + size] for i in range(0, len(matrix), size)])


def block_diagonal(blocks: Float[Tensor, "heads size size"]) -> Float[Tensor, "d d"]:
    """The matrix with these blocks on its diagonal."""
    return torch.block_diag(*blocks)


def rotary_pairs(
    matrix: Float[Tensor, "d d"], heads: int
) -> tuple[Float[Tensor, "heads pairs"], Float[Tensor, "heads pairs"]]:
    """A and b of every head and pair of channels, from the first row of each pair.

    Raises:
        InvalidInputError: The channels cannot be shared by so many heads, or a head's number of channels is odd.
    """
    blocks = blocks_of(matrix, heads)
    half = blocks.shape[-1] // 2
    if blocks.shape[-1] % 2:
        raise InvalidInputError(
            f"a head must have an even number of channels to be rotated, got {blocks.shape[-1]}. Check the heads."
        )
    return blocks[:, :half, :half].diagonal(dim1=1, dim2=2), -blocks[:, :half, half:].diagonal(dim1=1, dim2=2)


def rotary_matrix(a: Float[Tensor, "heads pairs"], b: Float[Tensor, "heads pairs"]) -> Float[Tensor, "d d"]:
    """The matrix that multiplies every pair of channels, read as a complex number, by a + i b."""
    real, imaginary = torch.diag_embed(a), torch.diag_embed(b)
    rows = (torch.cat([real, -imaginary], dim=2), torch.cat([imaginary, real], dim=2))
    return block_diagonal(torch.cat(rows, dim=1))


def _head_size(channels: int, heads: int) -> int:
    if heads < 1 or channels % heads:
        raise InvalidInputError(
            f"heads must divide the channels of the representation, got {heads} heads and {channels} channels. "
            "Correct the number of heads."
        )
    return channels // heads
