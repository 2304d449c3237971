"""Grouped-query attention: several query heads in turn read one kv head."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from daptq.errors import InvalidInputError

__all__ = ["check_heads", "check_query_heads", "for_query_heads"]


def check_heads(heads: int, kv_heads: int) -> None:
    """Refuses numbers of heads that do not go together.

    Raises:
        InvalidInputError: The kv heads do not divide the query heads.
    """
    if kv_heads < 1 or heads < 1 or heads % kv_heads:
        raise InvalidInputError(
            f"heads must be a multiple of kv_heads, got {heads} and {kv_heads}. Read both from the attention."
        )


def check_query_heads(size: int, place: str, channels: int, heads: int, kv_heads: int) -> None:
    """Refuses a layer whose query heads have another size than the kv heads of the representation.

    Args:
        size: Outputs or inputs of the layer, all query heads side by side.
        place: The layer.
        channels: Channels of the representation, all kv heads side by side.
        heads: Number of query heads.
        kv_heads: Number of kv heads.

    Raises:
        InvalidInputError: They have.
    """
    if size * kv_heads != channels * heads:
        raise InvalidInputError(
            f"{place} must have {heads} heads of the size of the representation's {kv_heads}, {channels} channels "
            f"together, got {size} channels. Correct the module paths of the fold, or its heads."
        )


def for_query_heads(values: Float[Tensor, "*n d"], heads: int, kv_heads: int) -> Float[Tensor, "*n in"]:
    """Values of all kv heads, side by side, as the query heads read them."""
    by_head: Tensor = values.unflatten(-1, (kv_heads, -1))
    return by_head.repeat_interleave(heads // kv_heads, dim=-2).flatten(-2)
