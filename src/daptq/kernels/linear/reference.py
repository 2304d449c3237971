"""The reference backend: ``daptq::linear_w4a8`` in plain torch integer arithmetic, int8 operands and int32 sums.

The weight stays packed in memory and is unpacked anew in every call. It is what every other backend must equal.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from daptq.kernels.linear import _op
from daptq.kernels.linear._arithmetic import quantize_activations, rescale
from daptq.kernels.linear._prepared import PackedWeight, PreparedLinear

__all__ = ["linear_w4a8", "prepare", "unavailable", "unsupported"]


def linear_w4a8(
    x: Float[Tensor, "m in"],
    weight_packed: UInt8[Tensor, "out bytes"],
    weight_scale: Float[Tensor, "out 1"],
    bias: Float[Tensor, " out"] | None,
    in_features: int,
    num_bits: int,
    activation_bits: int = 8,
    activation_scale: Float[Tensor, ""] | None = None,
) -> Float[Tensor, "m out"]:
    """The product y = x W^T + b with W = weight_scale * integers and x quantized to integers.

    Args:
        x: float32 (m, in_features).
        weight_packed: uint8 (out, ceil(in_features num_bits / 8)).
        weight_scale: float32 (out, 1).
        bias: float32 (out,), or None.
        in_features: Integers of each packed row.
        num_bits: 2, 3, 4 or 8.
        activation_bits: 4 or 8.
        activation_scale: Static scale of x, float32 scalar; None for one scale per row.

    Returns:
        float32 (m, out).

    Raises:
        InvalidInputError: `weight_packed` does not have the bytes that `in_features` and `num_bits` ask for.
    """
    weight = PackedWeight(packed=weight_packed, in_features=in_features, num_bits=num_bits).integers()
    integers, scale = quantize_activations(x, activation_bits, activation_scale)
    # |sum| <= 127 * 127 * in_features stays below 2^31 up to 133,000 input features.
    accumulators = torch.mm(integers.to(torch.int8).to(torch.int32), weight.to(torch.int32).t())
    return rescale(accumulators.to(torch.float32), scale, weight_scale, bias)


torch.library.impl(_op.NAME, "default", linear_w4a8)


class ReferenceLinear(PreparedLinear):
    """The packed weight as it is."""

    def __init__(self, weight: PackedWeight) -> None:
        self._weight = weight

    def run(
        self,
        x: Float[Tensor, "m in"],
        weight_scale: Float[Tensor, "out 1"],
        bias: Float[Tensor, " out"] | None,
        activation_bits: int = 8,
        activation_scale: Float[Tensor, ""] | None = None,
    ) -> Float[Tensor, "m out"]:
        """See `PreparedLinear.run`; goes through torch's dispatcher, where it can be seen."""
        weight = self._weight
        result: Tensor = torch.ops.daptq.linear_w4a8(
            x,
            weight.packed,
            weight_scale,
            bias,
            weight.in_features,
            weight.num_bits,
            activation_bits,
            activation_scale,
        )
        return result

    def weight(self) -> PackedWeight:
        """See `PreparedLinear.weight`."""
        return self._weight

    def resident_bytes(self) -> int:
        """See `PreparedLinear.resident_bytes`."""
        return self._weight.packed.nbytes


def unavailable() -> str | None:
    """None: torch is all it needs."""
    return None


def unsupported(weight: PackedWeight) -> str | None:
    """Weights on devices for which torch has no integer matrix product."""
    device = weight.packed.device.type
    return None if device in ("cpu", "meta") else f"torch multiplies integer matrices on the CPU only, not on {device}"


def prepare(weight: PackedWeight) -> ReferenceLinear:
    """Keeps the packed weight."""
    return ReferenceLinear(weight)
