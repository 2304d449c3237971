"""What a backend is given (`PackedWeight`) and what it makes of it (`PreparedLinear`).

A backend is a module with three functions:

    unavailable() -> str | None                             why it cannot run on this machine
    unsupported(weight, activation_bits) -> str | None      why it cannot multiply this weight with such activations
    prepare(weight) -> PreparedLinear                       the weight in the form it multiplies with

A prepared form can give the packed weight back, so a layer keeps one form in memory and never two.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Int8, UInt8
from torch import Tensor

from daptq.errors import InvalidInputError, require_one_of
from daptq.kernels.linear.arithmetic import FLOAT_ACTIVATIONS
from daptq.numerics.pack import pack, packed_length, unpack
from daptq.numerics.quantized_matrix import QuantizedMatrix, group_count

__all__ = ["WEIGHT_BITS", "Backend", "PackedWeight", "PreparedLinear", "beyond_channels"]

WEIGHT_BITS = (2, 3, 4, 8)


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedWeight:
    """The integers of a weight and its zero points, packed row by row.

    Attributes:
        packed: uint8 (out, ceil(in_features num_bits / 8)), see `daptq.numerics.pack`.
        in_features: Integers of each row.
        num_bits: 2, 3, 4 or 8.
        group_size: Inputs that share a scale: 32, 64 or 128, or 0 for one scale per output channel.
        zero_point: uint8 (out, ceil(groups num_bits / 8)), one zero point for each scale, or None: all are 0.
    """

    packed: UInt8[Tensor, "out bytes"]
    in_features: int
    num_bits: int
    group_size: int = 0
    zero_point: UInt8[Tensor, "out zero_bytes"] | None = None

    def __post_init__(self) -> None:
        require_one_of("num_bits of a quantized layer", self.num_bits, WEIGHT_BITS)
        row = packed_length(self.in_features, self.num_bits)
        if self.packed.dtype != torch.uint8 or self.packed.dim() != 2 or self.packed.shape[1] != row:
            raise InvalidInputError(
                f"weight_packed must be uint8 of shape (out_features, {row}) for {self.in_features} input features at "
                f"{self.num_bits} bits, got {self.packed.dtype} of shape {tuple(self.packed.shape)}. "
                "Check the checkpoint."
            )
        expected = (len(self.packed), packed_length(self.groups, self.num_bits))
        if self.zero_point is not None and (
            self.zero_point.dtype != torch.uint8 or tuple(self.zero_point.shape) != expected
        ):
            raise InvalidInputError(
                f"weight_zero_point must be uint8 of shape {expected} for {self.groups} groups at {self.num_bits} "
                f"bits, got {self.zero_point.dtype} of shape {tuple(self.zero_point.shape)}. Check the checkpoint."
            )

    @classmethod
    def from_integers(
        cls,
        integers: Int8[Tensor, "out in"],
        num_bits: int,
        *,
        group_size: int = 0,
        zero_point: Int8[Tensor, "out groups"] | None = None,
    ) -> PackedWeight:
        """Packs a matrix of integers.

        Args:
            integers: int8 (out, in), each in [-2^(num_bits-1), 2^(num_bits-1) - 1].
            num_bits: 2, 3, 4 or 8.
            group_size: As in the class.
            zero_point: int8 (out, groups) in the same range, or None.

        Raises:
            InvalidInputError: `integers` is no int8 matrix, one does not fit into `num_bits` bits, or the zero points
                do not belong to it.
        """
        if integers.dim() != 2:
            raise InvalidInputError(f"integers must have shape (out, in), got {tuple(integers.shape)}. Give a matrix.")
        return cls(
            packed=pack(integers, num_bits),
            in_features=integers.shape[1],
            num_bits=num_bits,
            group_size=group_size,
            zero_point=None if zero_point is None else pack(zero_point, num_bits),
        )

    @property
    def out_features(self) -> int:
        """Number of rows."""
        return len(self.packed)

    @property
    def groups(self) -> int:
        """Scales of each row."""
        return group_count(self.in_features, self.group_size)

    def integers(self) -> Int8[Tensor, "out in"]:
        """The unpacked integers."""
        return unpack(self.packed, self.num_bits, self.in_features)

    def zero_points(self) -> Int8[Tensor, "out groups"] | None:
        """The unpacked zero points, or None."""
        return None if self.zero_point is None else unpack(self.zero_point, self.num_bits, self.groups)

    def matrix(self, scale: Float[Tensor, "out groups"]) -> QuantizedMatrix:
        """The unpacked integers and zero points with their scales."""
        return QuantizedMatrix(
            integers=self.integers(),
            scale=scale,
            zero_point=self.zero_points(),
            num_bits=self.num_bits,
            group_size=self.group_size,
        )

    def nbytes(self) -> int:
        """Bytes of the packed integers and zero points."""
        return self.packed.nbytes + (0 if self.zero_point is None else self.zero_point.nbytes)


def beyond_channels(weight: PackedWeight, activation_bits: int) -> str | None:
    """Why a backend for integer activations and one symmetric scale per output channel cannot take a layer, or None."""
    if activation_bits == FLOAT_ACTIVATIONS:
        return "it multiplies quantized activations only"
    if weight.groups > 1:
        return f"it takes one scale per output channel, and here {weight.group_size} inputs share one"
    return None if weight.zero_point is None else "it takes symmetric weights only, and these have zero points"


class PreparedLinear(ABC):
    """A weight in the form in which one backend multiplies with it."""

    @abstractmethod
    def run(
        self,
        x: Float[Tensor, "m in"],
        weight_scale: Float[Tensor, "out groups"],
        bias: Float[Tensor, " out"] | None,
        activation_bits: int = 8,
        activation_scale: Float[Tensor, ""] | None = None,
    ) -> Float[Tensor, "m out"]:
        """The product y = x W^T + b, equal to the reference bit for bit; see `rounding_bound` for 16-bit activations.

        Args:
            x: (m, in), float32; at 16 bits any floating-point dtype.
            weight_scale: float32 (out, groups).
            bias: float32 (out,), or None.
            activation_bits: 4 or 8, or 16 for activations that are not quantized.
            activation_scale: Static scale of the activations, float32 scalar; None for one scale per row.

        Returns:
            float32 (m, out).
        """

    @abstractmethod
    def weight(self) -> PackedWeight:
        """The packed weight again."""

    @abstractmethod
    def resident_bytes(self) -> int:
        """Bytes that this form of the weight keeps in memory, padding included."""


class Backend(Protocol):
    """A backend's module."""

    def unavailable(self) -> str | None:
        """Why the backend cannot run on this machine, or None."""

    def unsupported(self, weight: PackedWeight, activation_bits: int) -> str | None:
        """Why the backend cannot multiply this weight with activations of so many bits, or None."""

    def prepare(self, weight: PackedWeight) -> PreparedLinear:
        """Brings a weight into the backend's form."""
