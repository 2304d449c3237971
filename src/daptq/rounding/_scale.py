"""The grids of a weight, one for each output channel or group of its inputs, as every rounding method chooses them.

They are chosen before anything is rounded: a method that moves weights while it rounds keeps the grids it began with.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from daptq.errors import InvalidInputError, RecipeError, require_one_of
from daptq.numerics.quantized_matrix import GROUP_SIZES, group_columns
from daptq.numerics.scales import absmax_scale, range_grid, searched_range_grid, searched_scale

__all__ = ["ScaleRule", "check_grid", "choose_grid"]

ScaleRule = Literal["searched", "absmax"]


def check_grid(rule: str, group_size: int, asymmetric: bool) -> None:
    """Refuses what describes no grid.

    Raises:
        RecipeError: `rule` is no `ScaleRule`, there are no groups of `group_size`, or `asymmetric` is no bool.
    """
    require_one_of("scale", rule, get_args(ScaleRule), RecipeError)
    if type(group_size) is not int or group_size not in GROUP_SIZES:
        raise RecipeError(
            f"group_size must be one of {', '.join(map(str, GROUP_SIZES))}, got {group_size!r}. "
            "Choose 0 for one scale per output channel."
        )
    if type(asymmetric) is not bool:
        raise RecipeError(f"asymmetric must be true or false, got {asymmetric!r}. Choose one of these.")


def choose_grid(
    weight: Float[Tensor, "out in"],
    num_bits: int,
    rule: ScaleRule,
    *,
    group_size: int = 0,
    asymmetric: bool = False,
    column_weight: Float[Tensor, " in"] | None = None,
) -> tuple[Float[Tensor, "out groups"], Int8[Tensor, "out groups"] | None]:
    """Scale, and zero point, of each group of each row.

    Args:
        weight: (out, in) finite weight.
        num_bits: Bits of the grid, 2 to 8.
        rule: ``"searched"``: the scale with the least squared error of rounding to nearest; ``"absmax"``: the largest
            weight of the group falls on the end of the grid, or the smallest and the largest on its two ends.
        group_size: Inputs of a group, 0 for one group in each row.
        asymmetric: Whether the grid has a zero point.
        column_weight: (in,), not negative: how much the squared error of each column counts in the search.

    Returns:
        Scale float32 (out, groups), positive, and zero point int8 (out, groups), None for a symmetric grid.

    Raises:
        InvalidInputError: `weight` is not a finite, non-empty matrix, or there is no grid of `num_bits`.
    """
    if weight.dim() != 2:
        raise InvalidInputError(
            f"weight must be a finite matrix (out, in), got shape {tuple(weight.shape)}. Pass a layer's."
        )
    grids = []
    for columns in group_columns(weight.shape[1], group_size):
        counts = None if column_weight is None else column_weight[columns]
        grids.append(_choose(weight[:, columns], num_bits, rule, asymmetric, counts))
    scales, zero_points = zip(*grids, strict=True)
    return torch.cat(scales, dim=1), torch.cat(zero_points, dim=1) if asymmetric else None


def _choose(
    weight: Float[Tensor, "out in"],
    num_bits: int,
    rule: ScaleRule,
    asymmetric: bool,
    column_weight: Float[Tensor, " in"] | None,
) -> tuple[Float[Tensor, "out 1"], Int8[Tensor, "out 1"] | None]:
    """The grid of each row of one group."""
    if rule == "searched":
        if asymmetric:
            return searched_range_grid(weight, num_bits, column_weight)
        return searched_scale(weight, num_bits, column_weight), None
    return range_grid(weight, num_bits) if asymmetric else (absmax_scale(weight, num_bits), None)
