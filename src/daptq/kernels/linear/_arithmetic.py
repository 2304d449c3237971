"""The floating-point arithmetic around the integer product; every backend uses exactly these two steps.

    q = round(x / s_x),  s_x = max |x| / 127        dynamic, symmetric, one scale for each token
    y = (acc * s_x) * s_w + b                        float32, in this order, each operation rounded on its own

`acc` is the exact integer product, as float32 (rounded only where it exceeds 2^24). This module does not multiply.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["ACTIVATION_BITS", "LARGEST_ACTIVATION", "quantize_activations", "rescale"]

ACTIVATION_BITS = 8
LARGEST_ACTIVATION = 127

# A tensor of no dimension costs less per call than a Python number, which torch wraps anew each time.
_DIVISOR = torch.tensor(float(LARGEST_ACTIVATION))
# Keeps the quotient of a zero row finite; its integers are 0 and its result is the bias, whatever the scale.
_SMALLEST_SCALE = torch.finfo(torch.float32).tiny


def quantize_activations(x: Float[Tensor, "m in"]) -> tuple[Float[Tensor, "m in"], Float[Tensor, "m 1"]]:
    """Dynamic symmetric 8-bit quantization of each row, halves to even.

    Args:
        x: float32 (m, in).

    Returns:
        Integers in [-127, 127], carried in float32 (m, in), and their scale, float32 (m, 1), positive. A row with NaN
        or infinity gets a scale that is not finite, so its result is not finite either.
    """
    scale = x.abs().amax(dim=1, keepdim=True).div_(_DIVISOR).clamp_min_(_SMALLEST_SCALE)
    return (x / scale).round_(), scale


def rescale(
    accumulators: Float[Tensor, "m out"],
    activation_scale: Float[Tensor, "m 1"],
    weight_scale: Float[Tensor, "out 1"],
    bias: Float[Tensor, " out"] | None,
) -> Float[Tensor, "m out"]:
    """Integer products to real values; `accumulators` is overwritten.

    Args:
        accumulators: float32 (m, out), integer products.
        activation_scale: float32 (m, 1).
        weight_scale: float32 (out, 1).
        bias: float32 (out,), or None.
    """
    scaled = accumulators.mul_(activation_scale).mul_(weight_scale.t())
    return scaled if bias is None else scaled.add_(bias)
