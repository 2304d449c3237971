"""Round-to-nearest: every weight goes to the nearest point of the grid of its output channel, or of its group there.

The scale is either the smallest that clips nothing or the one with the least squared error. The method sees one
weight matrix and nothing else: no activations, no other layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from daptq.numerics.quantized_matrix import QuantizedMatrix, quantize_matrix
from daptq.rounding._scale import ScaleRule, check_grid, choose_grid
from daptq.rounding.contract import RoundingMethod

__all__ = ["ROUNDING", "NearestConfig", "ScaleRule", "round_weight"]


@dataclass(frozen=True, kw_only=True)
class NearestConfig(RoundingMethod):
    """How a weight is rounded.

    Attributes:
        scale: ``"searched"``: the scale with the least squared error; ``"absmax"``: the largest weight falls on the end
            of the grid, or, of an asymmetric grid, the smallest and the largest on its two ends.
        group_size: Inputs that share a scale: 32, 64 or 128, or 0 for one scale per output channel.
        asymmetric: Whether each scale has a zero point.
    """

    method: ClassVar[str] = "nearest"

    scale: ScaleRule = "searched"

    def __post_init__(self) -> None:
        check_grid(self.scale, self.group_size, self.asymmetric)

    def round_weight(
        self,
        weight: Float[Tensor, "out in"],
        num_bits: int,
        gram: Float[Tensor, "in in"] | None = None,  # noqa: ARG002  (not needed)
    ) -> QuantizedMatrix:
        """Rounds one weight, see the function `round_weight`."""
        return round_weight(weight, num_bits, scale=self.scale, group_size=self.group_size, asymmetric=self.asymmetric)


ROUNDING = NearestConfig


def round_weight(
    weight: Float[Tensor, "out in"],
    num_bits: int,
    *,
    scale: ScaleRule = "searched",
    group_size: int = 0,
    asymmetric: bool = False,
) -> QuantizedMatrix:
    """Rounds a weight to the nearest integers.

    Args:
        weight: (out, in) finite float weight.
        num_bits: 2, 3, 4 or 8.
        scale: How the scales are chosen, see `NearestConfig`.
        group_size: 32, 64, 128, or 0 for one scale per output channel.
        asymmetric: Whether each scale has a zero point.

    Returns:
        Integers, scales and zero points, which stand for about the weight.

    Raises:
        InvalidInputError: The weight is not a finite, non-empty matrix, or there is no grid of `num_bits`.
    """
    values = weight.detach().float()
    scales, zero_point = choose_grid(values, num_bits, scale, group_size=group_size, asymmetric=asymmetric)
    return quantize_matrix(values, scales, zero_point, num_bits, group_size)
