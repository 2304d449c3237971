"""Backend: exact integer products carried by float32 matrix multiplication.

Integers and their partial sums up to 2^24 are exact in float32, so torch's float32 matrix product of int8 values *is*
the integer product as long as 127 * largest weight * in_features stays below that: 16,513 input features at 4 bits.
Longer rows (1,032 at 8 bits) are multiplied in pieces and added as int32; groups are short enough by themselves. Lower
internal precisions of torch (TF32, bfloat16) change nothing, because the operands have 9 significant bits and the sums
are kept in float32. Activations that are not quantized are multiplied with the dequantized weight.

The weight is resident as int8 (1 byte each); one layer at a time is copied to float32 inside a call. Keeping 4 bits
resident instead would cost another unpacking in every call. It runs on every device.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from daptq.kernels.linear.arithmetic import (
    FLOAT_ACTIVATIONS,
    LARGEST_ACTIVATION,
    quantize_activations,
    rescale,
    rescale_groups,
)
from daptq.kernels.linear.contract import PackedWeight, PreparedLinear
from daptq.numerics.quantized_matrix import dequantize_matrix, group_columns, spread

__all__ = ["exact_length", "prepare", "unavailable", "unsupported"]


def exact_length(num_bits: int, *, asymmetric: bool = False) -> int:
    """Largest number of products of any 8-bit activation and `num_bits` weight whose sum is exact in float32."""
    # Packed integers may use the most negative value, which the symmetric grid does not.
    largest = 2**num_bits - 1 if asymmetric else 2 ** (num_bits - 1)
    return int(2**24 // (LARGEST_ACTIVATION * largest))


class Float32CarriedLinear(PreparedLinear):
    """An int8 weight and the length up to which float32 sums are exact."""

    def __init__(self, weight: PackedWeight) -> None:
        self._integers = weight.integers()
        self._zero_point = weight.zero_points()
        self._num_bits = weight.num_bits
        self._group_size = weight.group_size
        self._grouped = weight.groups > 1
        self._exact_length = exact_length(weight.num_bits, asymmetric=weight.zero_point is not None)

    def run(
        self,
        x: Float[Tensor, "m in"],
        weight_scale: Float[Tensor, "out groups"],
        bias: Float[Tensor, " out"] | None,
        activation_bits: int = 8,
        activation_scale: Float[Tensor, ""] | None = None,
    ) -> Float[Tensor, "m out"]:
        """See `PreparedLinear.run`."""
        if activation_bits == FLOAT_ACTIVATIONS:
            weight = dequantize_matrix(self._integers, weight_scale, self._zero_point, self._group_size)
            return nn.functional.linear(x.to(torch.float32), weight, bias)
        integers, scale = quantize_activations(x, activation_bits, activation_scale)
        if self._grouped:
            return rescale_groups(self._by_group(integers), scale, weight_scale, bias)
        if integers.shape[1] <= self._exact_length:
            accumulators = torch.mm(integers, self._values().t())
        else:
            accumulators = self._in_pieces(integers)
        return rescale(accumulators, scale, weight_scale, bias)

    def _values(self) -> Float[Tensor, "out in"]:
        """The integers in float32, zero points subtracted."""
        values = self._integers.to(torch.float32)
        if self._zero_point is None:
            return values
        return values.sub_(spread(self._zero_point.to(torch.float32), values.shape[1], self._group_size))

    def _by_group(self, integers: Float[Tensor, "m in"]) -> Iterator[Float[Tensor, "m out"]]:
        values = self._values()
        for columns in group_columns(integers.shape[1], self._group_size):
            yield torch.mm(integers[:, columns], values[:, columns].t())

    def _in_pieces(self, integers: Float[Tensor, "m in"]) -> Float[Tensor, "m out"]:
        total = torch.zeros(len(integers), len(self._integers), dtype=torch.int32, device=integers.device)
        pieces = zip(
            integers.split(self._exact_length, dim=1), self._values().split(self._exact_length, dim=1), strict=True
        )
        for left, right in pieces:
            total += torch.mm(left, right.t()).to(torch.int32)
        return total.to(torch.float32)

    def weight(self) -> PackedWeight:
        """See `PreparedLinear.weight`."""
        return PackedWeight.from_integers(
            self._integers, self._num_bits, group_size=self._group_size, zero_point=self._zero_point
        )

    def resident_bytes(self) -> int:
        """See `PreparedLinear.resident_bytes`."""
        return self._integers.nbytes + (0 if self._zero_point is None else self._zero_point.nbytes)


def unavailable() -> str | None:
    """None: torch is all it needs."""
    return None


def unsupported(weight: PackedWeight, activation_bits: int) -> str | None:  # noqa: ARG001  (a backend's signature)
    """None: it takes every layer."""
    return None


def prepare(weight: PackedWeight) -> Float32CarriedLinear:
    """Unpacks the weight to int8."""
    return Float32CarriedLinear(weight)
