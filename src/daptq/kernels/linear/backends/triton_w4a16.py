"""Backend: floating-point activations times a packed weight on a CUDA device, by a Triton kernel of daptq's own.

The weight stays packed, as it is on disk: at one or a few rows a product takes the time of reading its weight, a
quarter of bfloat16's at 4 bits. Integers minus zero points are exact in every dtype of the activations; scales multiply
the float32 sum of each group. With ``TRITON_INTERPRET=1`` in the environment the same kernel runs on the CPU in
Triton's interpreter: slowly, for tests. It was not run on a GPU yet, and no time of it was measured.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int8, UInt8
from torch import Tensor

from daptq.kernels.linear.arithmetic import FLOAT_ACTIVATIONS
from daptq.kernels.linear.backends._triton_form import TritonLinear, runs_on, unavailable
from daptq.kernels.linear.contract import PackedWeight
from daptq.kernels.linear.op import like_product

__all__ = ["NAME", "prepare", "unavailable", "unsupported"]

NAME = "daptq::linear_w4a16_triton"

torch.library.define(
    NAME,
    "(Tensor x, Tensor weight_packed, Tensor weight_scale, Tensor? weight_zero_point, Tensor? bias, int num_bits, "
    "int group_size=0) -> Tensor",
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
) -> Float[Tensor, "m out"]:
    from daptq.kernels.linear.backends._triton_kernels import multiply_floats

    return multiply_floats(x, weight_packed, weight_scale, weight_zero_point, bias, num_bits, group_size)


class TritonW4A16Linear(TritonLinear):
    """The packed weight, multiplied with floating-point activations."""

    def run(
        self,
        x: Float[Tensor, "m in"],
        weight_scale: Float[Tensor, "out groups"],
        bias: Float[Tensor, " out"] | None,
        activation_bits: int = FLOAT_ACTIVATIONS,  # noqa: ARG002  (16, see `unsupported`)
        activation_scale: Float[Tensor, ""] | None = None,  # noqa: ARG002
    ) -> Float[Tensor, "m out"]:
        """See `PreparedLinear.run`; goes through torch's dispatcher, where it can be seen."""
        weight = self._weight
        return torch.ops.daptq.linear_w4a16_triton(
            x, weight.packed, weight_scale, self._zero_point, bias, weight.num_bits, weight.group_size
        )


def unsupported(weight: PackedWeight, activation_bits: int) -> str | None:
    """Why the kernel cannot multiply this layer, or None."""
    if activation_bits != FLOAT_ACTIVATIONS:
        return "it multiplies floating-point activations only"
    return runs_on(weight.packed.device)


def prepare(weight: PackedWeight) -> TritonW4A16Linear:
    """Keeps the packed weight."""
    return TritonW4A16Linear(weight)
