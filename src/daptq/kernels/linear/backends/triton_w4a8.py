"""Backend: integer products on the tensor cores of a CUDA device, by a Triton kernel of daptq's own.

The weight stays packed, as it is on disk, and is unpacked in registers; int8 products are summed in int32. Rows are
quantized before the kernel by the arithmetic that every backend shares. With ``TRITON_INTERPRET=1`` in the environment
the same kernel runs on the CPU in Triton's interpreter: slowly, for tests. It was not run on a GPU yet, and no time of
it was measured.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int8, UInt8
from torch import Tensor

from daptq.kernels.linear.arithmetic import FLOAT_ACTIVATIONS, quantize_activations
from daptq.kernels.linear.backends._triton_form import TritonLinear, runs_on, unavailable
from daptq.kernels.linear.contract import PackedWeight
from daptq.kernels.linear.op import like_product

__all__ = ["NAME", "prepare", "unavailable", "unsupported"]

NAME = "daptq::linear_w4a8_triton"

torch.library.define(
    NAME,
    "(Tensor x, Tensor weight_packed, Tensor weight_scale, Tensor? weight_zero_point, Tensor? bias, int num_bits, "
    "int group_size=0, int activation_bits=8, Tensor? activation_scale=None) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.register_fake(NAME, like_product)


@torch.library.impl(NAME, "default")
def _multiply(
    x: Float[Tensor, "m in"],
    weight_packed: UInt8[Tensor, "out bytes"],
    weight_scale: Float[Tensor, "out groups"],
    weight_zero_point: Int8[Tensor, "out groups"] | None,
    bias: Float[Tensor, " out"] | None,
    num_bits: int,
    group_size: int = 0,
    activation_bits: int = 8,
    activation_scale: Float[Tensor, ""] | None = None,
) -> Float[Tensor, "m out"]:
    from daptq.kernels.linear.backends._triton_kernels import multiply_integers

    integers, scale = quantize_activations(x, activation_bits, activation_scale)
    return multiply_integers(
        integers.to(torch.int8), weight_packed, scale, weight_scale, weight_zero_point, bias, num_bits, group_size
    )


class TritonW4A8Linear(TritonLinear):
    """The packed weight, multiplied with integers."""

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
        result: Tensor = torch.ops.daptq.linear_w4a8_triton(
            x, weight.packed, weight_scale, self._zero_point, bias, weight.num_bits, weight.group_size,
            activation_bits, activation_scale,
        )  # fmt: skip
        return result


def unsupported(weight: PackedWeight, activation_bits: int) -> str | None:
    """Why the kernel cannot multiply this layer, or None."""
    if activation_bits == FLOAT_ACTIVATIONS:
        return "it multiplies quantized activations only"
    return runs_on(weight.packed.device)


def prepare(weight: PackedWeight) -> TritonW4A8Linear:
    """Keeps the packed weight."""
    return TritonW4A8Linear(weight)
