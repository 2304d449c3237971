"""`BFloat16Linear`: a linear layer kept in bfloat16 that multiplies in the dtype of its activations.

Float32 activations on a processor with AVX2 go to a kernel of daptq's own, ``daptq::linear_bfloat16``, which is
compiled from `bfloat16.cpp` when it is first needed and reads the weight as it is; for that it lies transposed in
memory. Everything else goes to torch, with a copy of the weight in the activations' dtype that is dropped after the
call. Either way the result is that of a linear layer with the weight rounded to bfloat16, up to the rounding of sums.
"""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import BFloat16, Float
from torch import Tensor, nn
from typing_extensions import Self

from daptq.kernels._compiled import load_source, vector_flags

__all__ = ["NAME", "BFloat16Linear", "unavailable"]

NAME = "daptq::linear_bfloat16"
SOURCE = Path(__file__).with_name("bfloat16.cpp")

torch.library.define(NAME, "(Tensor x, Tensor weight, Tensor? bias) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))


@torch.library.register_fake(NAME)  # type: ignore[untyped-decorator]
def _shape(
    x: Float[Tensor, "m in"],
    weight: BFloat16[Tensor, "out in"],
    bias: BFloat16[Tensor, " out"] | None,  # noqa: ARG001  (the schema's arguments)
) -> Float[Tensor, "m out"]:
    return x.new_empty((x.shape[0], weight.shape[0]))


def unavailable() -> str | None:
    """Why the kernel cannot be compiled or run here, or None; compiles it when it is asked for the first time."""
    flags = vector_flags()
    return load_source(SOURCE, flags) if flags else "this processor has no AVX2"


_multiply = torch.ops.daptq.linear_bfloat16.default


def _has_kernel(x: Float[Tensor, "*batch in"], weight: Float[Tensor, "out in"]) -> bool:
    """Whether the kernel multiplies `x`: float32 on the CPU, without a gradient, bfloat16 weight."""
    return (
        x.dtype is torch.float32
        and weight.dtype is torch.bfloat16
        and x.is_cpu
        and weight.is_cpu
        and not (x.requires_grad and torch.is_grad_enabled())
        and unavailable() is None
    )


class BFloat16Linear(nn.Module):
    """y = x W^T + b, W and b resident in bfloat16, arithmetic in the dtype of x.

    Args:
        weight: (out, in); rounded to bfloat16 if it is not.
        bias: (out,), or None.

    Attributes:
        weight: bfloat16 (out, in), transposed in memory.
        bias: bfloat16 (out,), or None.
        in_features: Input channels.
        out_features: Output channels.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, weight: Float[Tensor, "out in"], bias: Float[Tensor, " out"] | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.weight = nn.Parameter(_bfloat16(weight.t()).t(), requires_grad=False)
        shift = None if bias is None else nn.Parameter(_bfloat16(bias), requires_grad=False)
        self.register_parameter("bias", shift)

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> Self:
        """The same layer with its weight and bias rounded to bfloat16."""
        return cls(linear.weight, linear.bias)

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """Multiplies in the dtype of `x`."""
        # A small product takes 4 microseconds: parameters are read without a detour, and nothing is reshaped in vain.
        parameters = self._parameters
        weight, bias = parameters["weight"], parameters["bias"]
        assert weight is not None
        if not _has_kernel(x, weight):
            return nn.functional.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
        if x.dim() == 2:
            product: Tensor = _multiply(x, weight, bias)
            return product
        rows: Tensor = _multiply(x.reshape(-1, self.in_features), weight, bias)
        return rows.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """Sizes."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def _bfloat16(values: Float[Tensor, "*shape"]) -> BFloat16[Tensor, "*shape"]:
    """A contiguous copy in bfloat16."""
    return values.detach().to(torch.bfloat16, copy=True, memory_format=torch.contiguous_format)
