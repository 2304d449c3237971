"""What scalings by a percentile of the calibration data share: the percentile, and scale = range / largest integer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from daptq.activation_scaling.contract import ActivationScaling
from daptq.errors import InvalidInputError, RecipeError
from daptq.methods import Needs
from daptq.numerics.grid import largest_integer

__all__ = ["PercentileScaling", "static_scale"]


@dataclass(frozen=True, kw_only=True)
class PercentileScaling(ActivationScaling):
    """A scaling that reads a percentile of a layer's inputs.

    Attributes:
        percentile: Part of the calibration values, in percent, that a range does not clip.
    """

    percentile: float = 99.9

    def __post_init__(self) -> None:
        if not 0 < self.percentile <= 100:
            raise RecipeError(f"percentile must lie in (0, 100], got {self.percentile}. Choose for example 99.9.")

    @property
    def needs(self) -> Needs:
        """Ranges of the layers' inputs."""
        return Needs(ranges=True)

    def scales(self, ranges: Float[Tensor, " entries"] | None, num_bits: int) -> Float[Tensor, " entries"]:
        """The scales with which the ends of the ranges fall on the end of the grid.

        Raises:
            InvalidInputError: There are no ranges, or one is negative or not finite.
        """
        if ranges is None:
            raise InvalidInputError(f"ranges must be given for {self.method} scaling, got None. Calibrate the layer.")
        return static_scale(ranges, num_bits)


def static_scale(ranges: Float[Tensor, " steps"], num_bits: int) -> Float[Tensor, " steps"]:
    """The scales with which the ends of the ranges fall on the end of the grid; 1 where a range is zero.

    Args:
        ranges: (steps,), finite and not negative.
        num_bits: Bits of an activation, 4 or 8.

    Returns:
        float32 (steps,), positive.

    Raises:
        InvalidInputError: A range is negative or not finite, or there is no grid of `num_bits`.
    """
    if not bool((torch.isfinite(ranges) & (ranges >= 0)).all()):
        raise InvalidInputError("ranges must be finite and not negative, got other values. Calibrate the layer again.")
    scale = (ranges.to(torch.float64) / largest_integer(num_bits)).to(torch.float32)
    # A layer that saw only zeros, or a range that no normal scale can express.
    return torch.where(scale >= torch.finfo(torch.float32).tiny, scale, torch.ones_like(scale))
