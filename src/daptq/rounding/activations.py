"""How the activations of a quantized layer are scaled: per token as they come, or by what calibration saw.

A static scale is range / largest integer; activations past the range are clipped. The module does not measure ranges.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from daptq.errors import InvalidInputError, RecipeError, require_one_of
from daptq.numerics.grid import largest_integer

__all__ = ["ActivationConfig", "Scaling", "static_scale"]

Scaling = Literal["dynamic", "static", "per-step"]


@dataclass(frozen=True, kw_only=True)
class ActivationConfig:
    """How activations are scaled.

    Attributes:
        scaling: ``"dynamic"``: every token by its largest magnitude when it comes; ``"static"``: one scale for a layer;
            ``"per-step"``: one scale for each denoising step in the layers of the action head's loop, and one scale in
            all others.
        percentile: Part of the calibration values, in percent, that a static range does not clip.
    """

    scaling: Scaling = "dynamic"
    percentile: float = 99.9

    def __post_init__(self) -> None:
        require_one_of("scaling of activations", self.scaling, get_args(Scaling), RecipeError)
        if not 0 < self.percentile <= 100:
            raise RecipeError(f"percentile must lie in (0, 100], got {self.percentile}. Choose for example 99.9.")


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
