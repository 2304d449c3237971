"""Backend: floating-point activations times a weight in 4 or 8 bits, for x86 processors with AVX2 and FMA.

Compiled from `avx2_w4a16.cpp` when it is first needed. Weights of 2 and 3 bits are stored in 4; inputs are padded to a
multiple of 32, or of the group. A product reads an eighth of the bytes of float32, which is what counts where a weight
does not fit the cache and there are few rows; with many rows it takes the time of a float32 product and a little more.
"""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float, Int8, UInt8
from torch import Tensor, nn

from daptq.kernels.compiled import load_source
from daptq.kernels.linear.arithmetic import FLOAT_ACTIVATIONS
from daptq.kernels.linear.contract import PackedWeight, PreparedLinear

__all__ = ["NAME", "prepare", "unavailable", "unsupported"]

NAME = "daptq::linear_w4a16_avx2"
SOURCE = Path(__file__).with_name("avx2_w4a16.cpp")
UNIT = 32

_STORED_BITS = {2: 4, 3: 4, 4: 4, 8: 8}

torch.library.define(
    NAME,
    "(Tensor x, Tensor stored, Tensor weight_scale, Tensor? zero_point, Tensor? bias, int stored_bits, "
    "int group_size=0) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@torch.library.register_fake(NAME)  # type: ignore[untyped-decorator]
def _shape(
    x: Float[Tensor, "m in"],
    stored: UInt8[Tensor, "out bytes"],  # noqa: ARG001  (the schema's arguments)
    weight_scale: Float[Tensor, "out groups"],
    *_: object,
    **__: object,
) -> Float[Tensor, "m out"]:
    return x.new_empty((x.shape[0], weight_scale.shape[0]))


def _stored(integers: Int8[Tensor, "out in"], stored_bits: int, group_size: int) -> UInt8[Tensor, "out bytes"]:
    """Integers in the order in which the kernel reads them."""
    padded = nn.functional.pad(integers, (0, -integers.shape[1] % (group_size or UNIT)))
    if stored_bits == 8:
        return padded.view(torch.uint8)
    low, high = (padded + 8).view(torch.uint8).unflatten(1, (-1, 2, UNIT // 2)).unbind(2)
    both: Tensor = low | (high << 4)
    return both.flatten(1).contiguous()


def _integers(stored: UInt8[Tensor, "out bytes"], stored_bits: int, in_features: int) -> Int8[Tensor, "out in"]:
    """The integers again, without padding."""
    if stored_bits == 8:
        return stored[:, :in_features].contiguous().view(torch.int8)
    units = stored.unflatten(1, (-1, UNIT // 2))
    unsigned = torch.stack([units & 15, units >> 4], dim=2).flatten(1)
    return unsigned[:, :in_features].contiguous().view(torch.int8) - 8


class Avx2W4A16Linear(PreparedLinear):
    """A weight in the kernel's order, with zero points as int8."""

    def __init__(self, weight: PackedWeight) -> None:
        self._in_features, self._num_bits, self._group_size = weight.in_features, weight.num_bits, weight.group_size
        self._stored_bits = _STORED_BITS[weight.num_bits]
        self._stored = _stored(weight.integers(), self._stored_bits, weight.group_size)
        self._zero_point = weight.zero_points()

    def run(
        self,
        x: Float[Tensor, "m in"],
        weight_scale: Float[Tensor, "out groups"],
        bias: Float[Tensor, " out"] | None,
        activation_bits: int = FLOAT_ACTIVATIONS,  # noqa: ARG002  (16, see `unsupported`)
        activation_scale: Float[Tensor, ""] | None = None,  # noqa: ARG002
    ) -> Float[Tensor, "m out"]:
        """See `PreparedLinear.run`; goes through torch's dispatcher, where it can be seen."""
        return torch.ops.daptq.linear_w4a16_avx2.default(
            x.to(torch.float32), self._stored, weight_scale, self._zero_point, bias, self._stored_bits, self._group_size
        )

    def weight(self) -> PackedWeight:
        """See `PreparedLinear.weight`."""
        integers = _integers(self._stored, self._stored_bits, self._in_features)
        return PackedWeight.from_integers(
            integers, self._num_bits, group_size=self._group_size, zero_point=self._zero_point
        )

    def resident_bytes(self) -> int:
        """See `PreparedLinear.resident_bytes`."""
        return self._stored.nbytes + (0 if self._zero_point is None else self._zero_point.nbytes)


def unavailable() -> str | None:
    """Why the kernel cannot be compiled or run here, or None; compiles it when it is asked for the first time."""
    capability = torch.backends.cpu.get_cpu_capability()
    if capability not in ("AVX2", "AVX512"):
        return f"this processor has no AVX2: torch reports its capability as {capability}"
    return load_source(SOURCE, ("-mavx2", "-mfma"))


def unsupported(weight: PackedWeight, activation_bits: int) -> str | None:
    """Why the kernel cannot multiply this layer, or None."""
    if activation_bits != FLOAT_ACTIVATIONS:
        return "it multiplies floating-point activations only"
    if weight.packed.device.type != "cpu":
        return f"the AVX2 kernel runs on the CPU only, not on {weight.packed.device.type}"
    return None


def prepare(weight: PackedWeight) -> Avx2W4A16Linear:
    """Copies the weight into the kernel's order."""
    return Avx2W4A16Linear(weight)
