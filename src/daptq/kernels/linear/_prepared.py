"""What a backend is given (`PackedWeight`) and what it makes of it (`PreparedLinear`).

A backend is a module with three functions:

    unavailable() -> str | None                   why it cannot run on this machine
    unsupported(weight) -> str | None             why it cannot take this weight
    prepare(weight) -> PreparedLinear             the weight in the form it multiplies with

A prepared form can give the packed weight back, so a layer keeps one form in memory and never two.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Int8, UInt8
from torch import Tensor

from daptq.errors import InvalidInputError
from daptq.numerics.pack import pack, packed_length, unpack

__all__ = ["WEIGHT_BITS", "Backend", "PackedWeight", "PreparedLinear"]

WEIGHT_BITS = (2, 3, 4, 8)


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedWeight:
    """The integers of a weight, packed row by row.

    Attributes:
        packed: uint8 (out, ceil(in_features num_bits / 8)), see `daptq.numerics.pack`.
        in_features: Integers of each row.
        num_bits: 2, 3, 4 or 8.
    """

    packed: UInt8[Tensor, "out bytes"]
    in_features: int
    num_bits: int

    def __post_init__(self) -> None:
        if self.num_bits not in WEIGHT_BITS:
            raise InvalidInputError(
                f"num_bits of a quantized layer must be one of {', '.join(map(str, WEIGHT_BITS))}, "
                f"got {self.num_bits!r}. Choose one of these."
            )
        row = packed_length(self.in_features, self.num_bits)
        if self.packed.dtype != torch.uint8 or self.packed.dim() != 2 or self.packed.shape[1] != row:
            raise InvalidInputError(
                f"weight_packed must be uint8 of shape (out_features, {row}) for {self.in_features} input features at "
                f"{self.num_bits} bits, got {self.packed.dtype} of shape {tuple(self.packed.shape)}. "
                "Check the checkpoint."
            )

    @classmethod
    def from_integers(cls, integers: Int8[Tensor, "out in"], num_bits: int) -> PackedWeight:
        """Packs a matrix of integers.

        Raises:
            InvalidInputError: `integers` is no int8 matrix, or one of them does not fit into `num_bits` bits.
        """
        if integers.dim() != 2:
            raise InvalidInputError(f"integers must have shape (out, in), got {tuple(integers.shape)}. Give a matrix.")
        return cls(packed=pack(integers, num_bits), in_features=integers.shape[1], num_bits=num_bits)

    @property
    def out_features(self) -> int:
        """Number of rows."""
        return len(self.packed)

    def integers(self) -> Int8[Tensor, "out in"]:
        """The unpacked integers."""
        return unpack(self.packed, self.num_bits, self.in_features)


class PreparedLinear(ABC):
    """A weight in the form in which one backend multiplies with it."""

    @abstractmethod
    def run(
        self,
        x: Float[Tensor, "m in"],
        weight_scale: Float[Tensor, "out 1"],
        bias: Float[Tensor, " out"] | None,
        activation_bits: int = 8,
        activation_scale: Float[Tensor, ""] | None = None,
    ) -> Float[Tensor, "m out"]:
        """The product y = x W^T + b, equal to the reference bit for bit.

        Args:
            x: float32 (m, in).
            weight_scale: float32 (out, 1).
            bias: float32 (out,), or None.
            activation_bits: 4 or 8.
            activation_scale: Static scale of the activations, float32 scalar; None for one scale per row.
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

    def unsupported(self, weight: PackedWeight) -> str | None:
        """Why the backend cannot take this weight, or None."""

    def prepare(self, weight: PackedWeight) -> PreparedLinear:
        """Brings a weight into the backend's form."""
