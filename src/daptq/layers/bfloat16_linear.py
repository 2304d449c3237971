"""`BFloat16Linear`: a linear layer kept in bfloat16 that multiplies in the dtype of its activations.

Float32 activations on a processor with AVX2 go to ``daptq::linear_bfloat16``. Everything else goes to torch, with a
copy of the weight in the activations' dtype that is dropped after the call. Either way the result is that of a linear
layer with the weight rounded to bfloat16, up to the rounding of sums.
"""

from __future__ import annotations

import torch
from jaxtyping import BFloat16, Float
from torch import Tensor, nn
from typing_extensions import Self

from daptq.kernels.linear.bfloat16 import has_kernel, multiply

__all__ = ["BFloat16Linear"]


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
        if not has_kernel(x, weight):
            return nn.functional.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
        if x.dim() == 2:
            product: Tensor = multiply(x, weight, bias)
            return product
        rows: Tensor = multiply(x.reshape(-1, self.in_features), weight, bias)
        return rows.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """Sizes."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def _bfloat16(values: Float[Tensor, "*shape"]) -> BFloat16[Tensor, "*shape"]:
    """A contiguous copy in bfloat16."""
    return values.detach().to(torch.bfloat16, copy=True, memory_format=torch.contiguous_format)
