"""The floating-point arithmetic around the integer product; every backend uses exactly these two steps.

    q = round(x / s_x),  s_x = max |x| / limit      dynamic, symmetric, one scale for each token
    q = clip(round(x / s_x), -limit, limit)         static, s_x given
    y = sum_g (acc_g * s_x) * s_w,g + b             float32, in this order, each operation rounded on its own

with limit 127 for 8-bit and 7 for 4-bit activations. `acc_g` is the exact integer product of the g-th group of inputs,
zero points of the weight subtracted, as float32 (rounded only where it exceeds 2^24); groups are added in ascending
order, and the bias last. This module does not multiply, and does not know how a static scale was found.

Activations of 16 bits are those that are not quantized: there is no integer product, so backends add in any order, and
`rounding_bound` says how far from each other they may come out.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from daptq.errors import InvalidInputError

__all__ = [
    "ACTIVATION_BITS",
    "FLOAT_ACTIVATIONS",
    "LARGEST_ACTIVATION",
    "check_activations",
    "quantize_activations",
    "rescale",
    "rescale_groups",
    "rounding_bound",
]

# Bits that stand for activations in floating point.
FLOAT_ACTIVATIONS = 16
ACTIVATION_BITS = (4, 8, FLOAT_ACTIVATIONS)
LARGEST_ACTIVATION = 127

_LIMITS = {4: 7.0, 8: 127.0}
# A tensor of no dimension costs less per call than a Python number, which torch wraps anew each time.
_DIVISORS = {bits: torch.tensor(limit) for bits, limit in _LIMITS.items()}
# Keeps the quotient of a zero row finite; its integers are 0 and its result is the bias, whatever the scale.
_SMALLEST_SCALE = torch.finfo(torch.float32).tiny


def check_activations(num_bits: int, scale: Float[Tensor, " steps"] | None) -> None:
    """Refuses what `quantize_activations` cannot work with.

    Args:
        num_bits: Bits of an activation.
        scale: A static scale, or one for each denoising step; None for dynamic scales, or none.

    Raises:
        InvalidInputError: There is no grid of `num_bits`, or a scale is not positive and finite, or without use.
    """
    if type(num_bits) is not int or num_bits not in ACTIVATION_BITS:
        raise InvalidInputError(
            f"activation_bits must be 4 or 8, or 16 for floating point, got {num_bits!r}. Choose one of these."
        )
    if scale is None:
        return
    if num_bits == FLOAT_ACTIVATIONS:
        raise InvalidInputError(
            "activation_scale must be None for activations that are not quantized, got one. Choose 4 or 8 bits."
        )
    if scale.dim() != 1 or len(scale) == 0:
        raise InvalidInputError(
            f"activation_scale must have shape (1,) or (steps,), got {tuple(scale.shape)}. "
            "Give one scale, or one for each denoising step."
        )
    if not bool((torch.isfinite(scale) & (scale >= _SMALLEST_SCALE)).all()):
        raise InvalidInputError(
            "activation_scale must be positive and finite, got other values. Calibrate the layer on data that uses it."
        )


def quantize_activations(
    x: Float[Tensor, "m in"], num_bits: int = 8, scale: Float[Tensor, ""] | None = None
) -> tuple[Float[Tensor, "m in"], Float[Tensor, "m 1"]]:
    """Symmetric quantization, halves to even.

    Args:
        x: float32 (m, in).
        num_bits: 4 or 8.
        scale: Static scale, float32 scalar; by default each row has its own, with which nothing is clipped.

    Returns:
        Integers of at most 7 or 127 in magnitude, carried in float32 (m, in), and the scale of each row, float32
        (m, 1), positive. A row with NaN or infinity gets a scale that is not finite, so its result is not finite
        either.
    """
    peaks = x.abs().amax(dim=1, keepdim=True)
    if scale is None:
        scales = peaks.div_(_DIVISORS[num_bits]).clamp_min_(_SMALLEST_SCALE)
        return (x / scales).round_(), scales
    limit = _LIMITS[num_bits]
    return (x / scale).round_().clamp_(-limit, limit), peaks.mul_(0.0).add_(scale)


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


def rescale_groups(
    accumulators: Iterable[Float[Tensor, "m out"]],
    activation_scale: Float[Tensor, "m 1"],
    weight_scale: Float[Tensor, "out groups"],
    bias: Float[Tensor, " out"] | None,
) -> Float[Tensor, "m out"]:
    """Integer products of all groups to real values; `accumulators` are overwritten.

    Args:
        accumulators: float32 (m, out) of each group, at least one.
        activation_scale: float32 (m, 1).
        weight_scale: float32 (out, groups).
        bias: float32 (out,), or None.
    """
    total: Tensor | None = None
    for products, scale in zip(accumulators, weight_scale.split(1, dim=1), strict=True):
        term = rescale(products, activation_scale, scale, None)
        total = term if total is None else total.add_(term)
    assert total is not None
    return total if bias is None else total.add_(bias)


def rounding_bound(
    x: Float[Tensor, "m in"], weight: Float[Tensor, "out in"], bias: Float[Tensor, " out"] | None
) -> Float[Tensor, "m out"]:
    """How far a product in the arithmetic of `x` may be from the exact one, x W^T + b.

    A sum of k products, in whatever order, errs by at most k eps times the sum of their magnitudes (Higham, Accuracy
    and Stability of Numerical Algorithms, eq. 3.3), eps = 2 u; the bias is one more term, and a weight may have been
    rounded to the dtype of `x`. The bound allows two roundings of it.

    Args:
        x: (m, in), in the dtype of the arithmetic.
        weight: float64 (out, in).
        bias: (out,), or None.

    Returns:
        float64 (m, out).
    """
    magnitudes = torch.nn.functional.linear(
        x.abs().double(), weight.abs().double(), None if bias is None else bias.abs().double()
    )
    return (weight.shape[1] + 2) * torch.finfo(x.dtype).eps * magnitudes
