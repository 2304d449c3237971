"""The scale of each output channel, as every rounding method chooses it before it rounds."""

from __future__ import annotations

from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor

from daptq.errors import RecipeError
from daptq.numerics.scales import absmax_scale, searched_scale

__all__ = ["ScaleRule", "check_scale_rule", "choose_scale"]

ScaleRule = Literal["searched", "absmax"]


def check_scale_rule(rule: str) -> None:
    """Refuses what is no `ScaleRule`.

    Raises:
        RecipeError: `rule` is none.
    """
    if rule not in get_args(ScaleRule):
        raise RecipeError(f"scale must be one of {', '.join(get_args(ScaleRule))}, got {rule!r}. Choose one of these.")


def choose_scale(
    weight: Float[Tensor, "out in"],
    num_bits: int,
    rule: ScaleRule,
    column_weight: Float[Tensor, " in"] | None = None,
) -> Float[Tensor, "out 1"]:
    """The scale of each row.

    Args:
        weight: (out, in) finite weight.
        num_bits: Bits of the grid, 2 to 8.
        rule: ``"searched"``: the scale with the least squared error of rounding to nearest; ``"absmax"``: the largest
            weight of the row falls on the end of the grid.
        column_weight: (in,), not negative: how much the squared error of each column counts in the search.

    Returns:
        float32 (out, 1), positive.

    Raises:
        InvalidInputError: `weight` is not a finite, non-empty matrix, or there is no grid of `num_bits`.
    """
    return searched_scale(weight, num_bits, column_weight) if rule == "searched" else absmax_scale(weight, num_bits)
