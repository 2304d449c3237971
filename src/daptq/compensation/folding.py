"""Folding an affine map z -> M z + d into the weights around an interface, so that no operator is added at inference.

- A gain and a shift per channel fold exactly into the scales and the bias of the quantized layer that produces z.
- Any map folds exactly into a floating-point linear layer that consumes z: W' = W M, b' = b + W d.
- Otherwise any map folds into the producer's float weight, which is rounded again; the error of that rounding is
  returned.

Constants that the consumer reads in place of z (an unconditional vector) are moved so that the consumer answers as
before. This module does not know which layers these are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from daptq.compensation.affine import AffineMap
from daptq.errors import InvalidInputError
from daptq.numerics.quantized_matrix import QuantizedMatrix

__all__ = [
    "FoldedProducer",
    "fold_constant",
    "fold_gain_into_producer",
    "fold_into_consumer",
    "fold_into_producer_weight",
]

Rounder = Callable[[Float[Tensor, "out in"]], QuantizedMatrix]


@dataclass(frozen=True, kw_only=True, eq=False)
class FoldedProducer:
    """A producer whose weight was multiplied by M and rounded again.

    Attributes:
        weight: The rounded weight (out, in).
        bias: float32 (out,).
        rounding_error: ||weight - M W||_F / ||M W||_F, the relative error of the second rounding.
    """

    weight: QuantizedMatrix
    bias: Float[Tensor, " out"]
    rounding_error: float


def fold_gain_into_producer(
    scale: Float[Tensor, "out groups"],
    bias: Float[Tensor, " out"] | None,
    gain: Float[Tensor, " out"],
    shift: Float[Tensor, " out"],
) -> tuple[Float[Tensor, "out groups"], Float[Tensor, " out"]]:
    """Folds z -> g z + d into a quantized producer; exact for any bit-width, since integers and zero points stay.

    Args:
        scale: float32 (out, groups) scales.
        bias: (out,) bias, or None.
        gain: (out,) positive gain g.
        shift: (out,) shift d.

    Returns:
        Scale g s (out, groups) and bias g b + d (out,), float32.

    Raises:
        InvalidInputError: A gain is not positive, which a scale cannot express, or the shapes differ.
    """
    if scale.dim() != 2 or len(scale) != len(gain) or shift.shape != gain.shape:
        raise InvalidInputError(
            f"scale, gain and shift must have shapes (out, groups), (out,) and (out,), got {tuple(scale.shape)}, "
            f"{tuple(gain.shape)} and {tuple(shift.shape)}. Give one gain per output channel."
        )
    if not bool((gain > 0).all()):
        raise InvalidInputError(f"gain must be positive, got {float(gain.min())}. Limit the gain from below.")
    exact = gain.to(torch.float64)
    new_bias = shift.to(torch.float64) if bias is None else exact * bias.to(torch.float64) + shift
    return (scale.to(torch.float64) * exact.unsqueeze(1)).float(), new_bias.float()


def fold_into_consumer(
    weight: Float[Tensor, "out d"], bias: Float[Tensor, " out"] | None, affine: AffineMap
) -> tuple[Float[Tensor, "out d"], Float[Tensor, " out"]]:
    """Folds z -> M z + d into the linear layer that reads z: W' = W M, b' = b + W d.

    Args:
        weight: (out, d) float weight.
        bias: (out,) bias, or None.
        affine: The map.

    Returns:
        Weight (out, d) and bias (out,), float32; the products are computed in float64.
    """
    exact = weight.detach().to(torch.float64)
    offset = exact @ affine.shift
    new_bias = offset if bias is None else bias.detach().to(torch.float64) + offset
    return (exact @ affine.matrix).float(), new_bias.float()


def fold_into_producer_weight(
    weight: Float[Tensor, "out in"], bias: Float[Tensor, " out"] | None, affine: AffineMap, round_weight: Rounder
) -> FoldedProducer:
    """Folds z -> M z + d into the float weight of the layer that writes z, and rounds it again: W' = M W, b' = M b + d.

    Args:
        weight: (out, in) float weight of the producer.
        bias: (out,) bias, or None.
        affine: The map.
        round_weight: Rounds a float weight.
    """
    folded = affine.matrix @ weight.detach().to(torch.float64)
    rounded = round_weight(folded.float())
    error = (rounded.dequantize(torch.float64) - folded).norm() / folded.norm().clamp_min(1e-300)
    new_bias = affine.shift if bias is None else affine.matrix @ bias.detach().to(torch.float64) + affine.shift
    return FoldedProducer(weight=rounded, bias=new_bias.float(), rounding_error=float(error))


def fold_constant(constant: Float[Tensor, "... d"], affine: AffineMap) -> Float[Tensor, "... d"]:
    """M^-1 (u - d): what a consumer that absorbed the map must read so that it answers as it answered u before.

    Args:
        constant: (…, d) vectors u that are read in place of the representation.
        affine: The map that was folded into the consumer.

    Returns:
        Same shape, float32.
    """
    moved = (constant.detach().to(torch.float64) - affine.shift).reshape(-1, len(affine.shift))
    unmapped: Tensor = torch.linalg.solve(affine.matrix, moved.mT).mT
    return unmapped.reshape(constant.shape).float()
