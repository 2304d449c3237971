"""Round-to-nearest: every weight goes to the nearest point of a symmetric grid with one scale per output channel.

The scale is either the smallest that clips nothing or the one with the least squared error. The method sees one
weight matrix and nothing else: no activations, no other layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Int8
from torch import Tensor

from daptq.numerics.grid import quantize_symmetric
from daptq.rounding._scale import ScaleRule, check_scale_rule, choose_scale

__all__ = ["NearestConfig", "ScaleRule", "round_weight"]


@dataclass(frozen=True, kw_only=True)
class NearestConfig:
    """How a weight is rounded.

    Attributes:
        scale: ``"searched"``: the scale per output channel with the least squared error; ``"absmax"``: the largest
            weight of the channel falls on the end of the grid.
    """

    method: ClassVar[str] = "nearest"

    scale: ScaleRule = "searched"

    def __post_init__(self) -> None:
        check_scale_rule(self.scale)


def round_weight(
    weight: Float[Tensor, "out in"], num_bits: int, *, scale: ScaleRule = "searched"
) -> tuple[Int8[Tensor, "out in"], Float[Tensor, "out 1"]]:
    """Rounds a weight to the nearest integers of a symmetric grid, one scale per output channel.

    Args:
        weight: (out, in) finite float weight.
        num_bits: 2, 3, 4 or 8; the integers lie in [-(2^(num_bits-1) - 1), 2^(num_bits-1) - 1].
        scale: How the scale is chosen, see `NearestConfig`.

    Returns:
        Integers int8 (out, in) and scale float32 (out, 1); the weight is about scale * integers.

    Raises:
        InvalidInputError: The weight is not a finite, non-empty matrix, or there is no grid of `num_bits`.
    """
    values = weight.detach().float()
    channel_scale = choose_scale(values, num_bits, scale)
    return quantize_symmetric(values, channel_scale, num_bits), channel_scale
