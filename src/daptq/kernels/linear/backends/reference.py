"""The reference backend: the operations in plain torch arithmetic, which every other backend must equal.

``daptq::linear_w4a8`` multiplies int8 operands and sums in int32; ``daptq::linear_w4a16`` computes in float64 and
rounds once. The weight stays packed in memory and is unpacked anew in every call.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from daptq.kernels.linear import op
from daptq.kernels.linear.arithmetic import FLOAT_ACTIVATIONS, quantize_activations, rescale_groups
from daptq.kernels.linear.contract import PackedWeight, PreparedLinear
from daptq.numerics.quantized_matrix import dequantize_matrix, group_columns

__all__ = ["linear_w4a8", "linear_w4a16", "prepare", "unavailable", "unsupported"]


def linear_w4a8(
    x: Float[Tensor, "m in"],
    weight_packed: UInt8[Tensor, "out bytes"],
    weight_scale: Float[Tensor, "out groups"],
    bias: Float[Tensor, " out"] | None,
    in_features: int,
    num_bits: int,
    activation_bits: int = 8,
    activation_scale: Float[Tensor, ""] | None = None,
    group_size: int = 0,
    weight_zero_point: UInt8[Tensor, "out zero_bytes"] | None = None,
) -> Float[Tensor, "m out"]:
    """The product y = x W^T + b with W = weight_scale * (integers - zero points) and x quantized to integers.

    Args:
        x: float32 (m, in_features).
        weight_packed: uint8 (out, ceil(in_features num_bits / 8)).
        weight_scale: float32 (out, groups).
        bias: float32 (out,), or None.
        in_features: Integers of each packed row.
        num_bits: 2, 3, 4 or 8.
        activation_bits: 4 or 8.
        activation_scale: Static scale of x, float32 scalar; None for one scale per row.
        group_size: Inputs that share a scale: 32, 64, 128, or 0 for one scale per output channel.
        weight_zero_point: uint8 (out, ceil(groups num_bits / 8)), or None.

    Returns:
        float32 (m, out).

    Raises:
        InvalidInputError: `weight_packed` or `weight_zero_point` does not have the bytes that the sizes ask for.
    """
    packed = PackedWeight(
        packed=weight_packed,
        in_features=in_features,
        num_bits=num_bits,
        group_size=group_size,
        zero_point=weight_zero_point,
    )
    integers, scale = quantize_activations(x, activation_bits, activation_scale)
    left, right, zero_points = integers.to(torch.int32), packed.integers().to(torch.int32), packed.zero_points()
    accumulators = []
    for group, columns in enumerate(group_columns(in_features, group_size)):
        weight = right[:, columns]
        if zero_points is not None:
            weight = weight - zero_points[:, group : group + 1]
        # |sum| <= 127 * 255 * in_features stays below 2^31 up to 66,000 input features.
        accumulators.append(torch.mm(left[:, columns], weight.t()).to(torch.float32))
    return rescale_groups(accumulators, scale, weight_scale, bias)


def linear_w4a16(
    x: Float[Tensor, "m in"],
    weight_packed: UInt8[Tensor, "out bytes"],
    weight_scale: Float[Tensor, "out groups"],
    bias: Float[Tensor, " out"] | None,
    in_features: int,
    num_bits: int,
    group_size: int = 0,
    weight_zero_point: UInt8[Tensor, "out zero_bytes"] | None = None,
) -> Float[Tensor, "m out"]:
    """The product y = x W^T + b with W = weight_scale * (integers - zero points), in float64, rounded once.

    Args:
        x: (m, in_features), any floating-point dtype.
        weight_packed: As in `linear_w4a8`, like everything below.
        weight_scale: float32 (out, groups).
        bias: float32 (out,), or None.
        in_features: Integers of each packed row.
        num_bits: 2, 3, 4 or 8.
        group_size: 32, 64, 128, or 0.
        weight_zero_point: uint8 (out, ceil(groups num_bits / 8)), or None.

    Returns:
        float32 (m, out).

    Raises:
        InvalidInputError: As `linear_w4a8`.
    """
    packed = PackedWeight(
        packed=weight_packed,
        in_features=in_features,
        num_bits=num_bits,
        group_size=group_size,
        zero_point=weight_zero_point,
    )
    weight = dequantize_matrix(packed.integers(), weight_scale, packed.zero_points(), group_size, torch.float64)
    return nn.functional.linear(x.double(), weight, None if bias is None else bias.double()).to(torch.float32)


torch.library.impl(op.W4A8, "default", linear_w4a8)
torch.library.impl(op.W4A16, "default", linear_w4a16)


class ReferenceLinear(PreparedLinear):
    """The packed weight as it is."""

    def __init__(self, weight: PackedWeight) -> None:
        self._weight = weight

    def run(
        self,
        x: Float[Tensor, "m in"],
        weight_scale: Float[Tensor, "out groups"],
        bias: Float[Tensor, " out"] | None,
        activation_bits: int = 8,
        activation_scale: Float[Tensor, ""] | None = None,
    ) -> Float[Tensor, "m out"]:
        """See `PreparedLinear.run`; goes through torch's dispatcher, where it can be seen."""
        weight = self._weight
        given = (x, weight.packed, weight_scale, bias, weight.in_features, weight.num_bits)
        grid = (weight.group_size, weight.zero_point)
        result: Tensor
        if activation_bits == FLOAT_ACTIVATIONS:
            result = torch.ops.daptq.linear_w4a16(*given, *grid)
        else:
            result = torch.ops.daptq.linear_w4a8(*given, activation_bits, activation_scale, *grid)
        return result

    def weight(self) -> PackedWeight:
        """See `PreparedLinear.weight`."""
        return self._weight

    def resident_bytes(self) -> int:
        """See `PreparedLinear.resident_bytes`."""
        return self._weight.nbytes()


def unavailable() -> str | None:
    """None: torch is all it needs."""
    return None


def unsupported(weight: PackedWeight, activation_bits: int) -> str | None:  # noqa: ARG001  (a backend's signature)
    """Weights on devices for which torch has no integer matrix product."""
    device = weight.packed.device.type
    return None if device in ("cpu", "meta") else f"torch multiplies integer matrices on the CPU only, not on {device}"


def prepare(weight: PackedWeight) -> ReferenceLinear:
    """Keeps the packed weight."""
    return ReferenceLinear(weight)
