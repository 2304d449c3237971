"""Norms and layers as the operations ``daptq::transformer`` and ``daptq::denoise`` take them: two flat lists.

`transformer.cpp` reads both lists in the order in which norms and layers run, and names the places of a norm and of a
layer as the tuples here do.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

__all__ = ["BFLOAT16_LAYER", "LayerNumbers", "LayerTensors", "PackedLayer", "PackedNorm", "flat"]


class PackedNorm(NamedTuple):
    """A layer norm, or a root-mean-square norm.

    Attributes:
        weight: float32 (width,), or None for ones.
        bias: float32 (width,), or None for zeros.
    """

    weight: Float[Tensor, " width"] | None
    bias: Float[Tensor, " width"] | None


class LayerTensors(NamedTuple):
    """The tensors of a linear layer, with the names and the order of the arguments of ``daptq::layer``.

    Attributes:
        weight: bfloat16 (out, in), or the integers in the form of the backend ``avx2``.
        scale: float32 (out, groups); None in bfloat16.
        bias: float32 (out,), or None.
        activation_scale: float32 (1,), or None for one scale per token.
        input_scale: float32 (in,), or None.
        rotation: float32 (block, block), or None.
    """

    weight: Tensor
    scale: Tensor | None = None
    bias: Tensor | None = None
    activation_scale: Tensor | None = None
    input_scale: Tensor | None = None
    rotation: Tensor | None = None


class LayerNumbers(NamedTuple):
    """The numbers of a linear layer, the last arguments of ``daptq::layer``.

    Attributes:
        stored_bits: Bits of a stored weight, 16 for bfloat16.
        activation_bits: Bits of an activation, 0 with a weight in bfloat16.
    """

    stored_bits: int
    activation_bits: int


class PackedLayer(NamedTuple):
    """A linear layer."""

    tensors: LayerTensors
    numbers: LayerNumbers


BFLOAT16_LAYER = LayerNumbers(stored_bits=16, activation_bits=0)


def flat(parts: Iterable[PackedNorm | PackedLayer]) -> tuple[list[Tensor | None], list[int]]:
    """The tensors and the numbers of all parts, in order."""
    tensors: list[Tensor | None] = []
    numbers: list[int] = []
    for part in parts:
        if isinstance(part, PackedNorm):
            tensors += part
        else:
            tensors += part.tensors
            numbers += part.numbers
    return tensors, numbers
