"""Backend: a kernel of daptq's own for x86 processors with AVX2, compiled from `avx2.cpp` when it is first needed.

The weight stays in 4 bits (2 for 2-bit weights, 8 for 8-bit ones) and is unpacked in registers, so a product reads an
eighth of the bytes of float32; quantization, product, scales and bias are one call. Inputs are padded to multiples of
32 and outputs to multiples of 16. Compiling takes a few seconds, once on each machine, and needs g++ and torch's
headers; `avx2.cpp` says how the integers are multiplied. Processors with AVX-512 VNNI get another compilation of
the same source.
"""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float, Int8, UInt8
from torch import Tensor, nn

from daptq.kernels.compiled import load_source
from daptq.kernels.linear.arithmetic import LARGEST_ACTIVATION
from daptq.kernels.linear.contract import PackedWeight, PreparedLinear, beyond_channels

__all__ = ["NAME", "from_tiles", "prepare", "to_tiles", "unavailable", "unsupported"]

NAME = "daptq::linear_w4a8_avx2"
SOURCE = Path(__file__).with_name("avx2.cpp")
OUTPUTS, INPUTS = 16, 32

# Inputs that lie side by side in a vector, by stored bits; 3-bit weights are stored in 4.
_NEIGHBOURS = {2: 4, 4: 4, 8: 2}
_STORED_BITS = {2: 2, 3: 4, 4: 4, 8: 8}
_LARGEST_SUM = 2**31 - 1

torch.library.define(
    NAME,
    "(Tensor x, Tensor tiles, Tensor weight_scale, Tensor? bias, int stored_bits, int activation_bits=8, "
    "Tensor? activation_scale=None) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@torch.library.register_fake(NAME)  # type: ignore[untyped-decorator]
def _shape(
    x: Float[Tensor, "m in"],
    tiles: UInt8[Tensor, "panels groups halves outputs neighbours"],  # noqa: ARG001  (the schema's arguments)
    weight_scale: Float[Tensor, "out 1"],
    bias: Float[Tensor, " out"] | None,  # noqa: ARG001
    stored_bits: int,  # noqa: ARG001
    activation_bits: int = 8,  # noqa: ARG001
    activation_scale: Float[Tensor, ""] | None = None,  # noqa: ARG001
) -> Float[Tensor, "m out"]:
    return x.new_empty((x.shape[0], weight_scale.shape[0]))


def to_tiles(
    integers: Int8[Tensor, "out in"], stored_bits: int
) -> UInt8[Tensor, "panels groups halves outputs neighbours"]:
    """Integers in the order in which the kernel reads them.

    Args:
        integers: int8 (out, in) on the grid of `stored_bits`.
        stored_bits: 2, 4 or 8.

    Returns:
        uint8 (panels of 16 outputs, groups of inputs, 2, 8 outputs, neighbouring inputs). A byte holds the bits of
        8 / stored_bits inputs, each with an offset that makes it unsigned; at 8 bits it is the signed integer.
    """
    out_features, in_features = integers.shape
    padded = nn.functional.pad(integers, (0, -in_features % INPUTS, 0, -out_features % OUTPUTS))
    planes, neighbours = 8 // stored_bits, _NEIGHBOURS[stored_bits]
    split = padded.view(len(padded) // OUTPUTS, 2, OUTPUTS // 2, -1, planes, neighbours)
    if planes == 1:
        tiles = split.squeeze(4).view(torch.uint8)
    else:
        unsigned = (split + 2 ** (stored_bits - 1)).view(torch.uint8)
        tiles = unsigned[..., 0, :].clone()
        for plane in range(1, planes):
            tiles |= unsigned[..., plane, :] << (stored_bits * plane)
    return tiles.permute(0, 3, 1, 2, 4).contiguous()


def from_tiles(
    tiles: UInt8[Tensor, "panels groups halves outputs neighbours"],
    stored_bits: int,
    out_features: int,
    in_features: int,
) -> Int8[Tensor, "out in"]:
    """The integers again: the inverse of `to_tiles`, without padding."""
    rows = tiles.permute(0, 2, 3, 1, 4)
    if stored_bits == 8:
        split = rows.contiguous().view(torch.int8).unsqueeze(4)
    else:
        mask = 2**stored_bits - 1
        planes = [(rows >> (stored_bits * plane)) & mask for plane in range(8 // stored_bits)]
        split = torch.stack(planes, dim=4).view(torch.int8) - 2 ** (stored_bits - 1)
    return split.reshape(len(tiles) * OUTPUTS, -1)[:out_features, :in_features].contiguous()


class Avx2Linear(PreparedLinear):
    """A weight in tiles."""

    def __init__(self, weight: PackedWeight) -> None:
        self._shape = (weight.out_features, weight.in_features)
        self._num_bits, self._group_size = weight.num_bits, weight.group_size
        self.stored_bits = _STORED_BITS[weight.num_bits]
        self.tiles = to_tiles(weight.integers(), self.stored_bits)

    def run(
        self,
        x: Float[Tensor, "m in"],
        weight_scale: Float[Tensor, "out 1"],
        bias: Float[Tensor, " out"] | None,
        activation_bits: int = 8,
        activation_scale: Float[Tensor, ""] | None = None,
    ) -> Float[Tensor, "m out"]:
        """See `PreparedLinear.run`; goes through torch's dispatcher, where it can be seen."""
        return torch.ops.daptq.linear_w4a8_avx2.default(
            x, self.tiles, weight_scale, bias, self.stored_bits, activation_bits, activation_scale
        )

    def weight(self) -> PackedWeight:
        """See `PreparedLinear.weight`."""
        integers = from_tiles(self.tiles, self.stored_bits, *self._shape)
        return PackedWeight.from_integers(integers, self._num_bits, group_size=self._group_size)

    def resident_bytes(self) -> int:
        """See `PreparedLinear.resident_bytes`."""
        return self.tiles.nbytes


def unavailable() -> str | None:
    """Why the kernel cannot be compiled or run here, or None; compiles it when it is asked for the first time."""
    capability = torch.backends.cpu.get_cpu_capability()
    if capability not in ("AVX2", "AVX512"):
        return f"this processor has no AVX2: torch reports its capability as {capability}"
    return load_source(SOURCE, _flags())


def unsupported(weight: PackedWeight, activation_bits: int) -> str | None:
    """Why the weight cannot be multiplied exactly by the kernel, or None."""
    if weight.packed.device.type != "cpu":
        return f"the AVX2 kernel runs on the CPU only, not on {weight.packed.device.type}"
    stored_bits = _STORED_BITS[weight.num_bits]
    largest = 128 if stored_bits == 8 else 2**stored_bits - 1
    longest = _LARGEST_SUM // (LARGEST_ACTIVATION * largest)
    if weight.in_features > longest:
        return f"32-bit sums are exact up to {longest} input features, and these are {weight.in_features}"
    return beyond_channels(weight, activation_bits)


def prepare(weight: PackedWeight) -> Avx2Linear:
    """Copies the weight into tiles."""
    return Avx2Linear(weight)


def _flags() -> tuple[str, ...]:
    """Compiler options: with AVX-512's 8-bit dot products, the source uses them in the same vectors of 256 bits."""
    if not torch.cpu._is_vnni_supported():
        return ("-mavx2",)
    return ("-mavx2", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512vnni")
