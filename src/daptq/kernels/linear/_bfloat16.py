"""`BFloat16Linear`: a linear layer kept in bfloat16 that multiplies in the dtype of its activations.

Processors without bfloat16 arithmetic multiply float32 faster, so the layer copies its own weight to the activations'
dtype inside each call and drops the copy. The result is exactly that of a linear layer with the weight rounded to
bfloat16.
"""

from __future__ import annotations

import torch
from jaxtyping import BFloat16, Float
from torch import Tensor, nn
from typing_extensions import Self

__all__ = ["BFloat16Linear"]


class BFloat16Linear(nn.Module):
    """y = x W^T + b, W and b resident in bfloat16, arithmetic in the dtype of x.

    Args:
        weight: (out, in); rounded to bfloat16 if it is not.
        bias: (out,), or None.

    Attributes:
        weight: bfloat16 (out, in).
        bias: bfloat16 (out,), or None.
        in_features: Input channels.
        out_features: Output channels.
    """

    def __init__(self, weight: Float[Tensor, "out in"], bias: Float[Tensor, " out"] | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.weight = _parameter(weight)
        self.bias = None if bias is None else _parameter(bias)

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> Self:
        """The same layer with its weight and bias rounded to bfloat16."""
        return cls(linear.weight, linear.bias)

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """Multiplies in the dtype of `x`."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return nn.functional.linear(x, self.weight.to(x.dtype), bias)

    def extra_repr(self) -> str:
        """Sizes."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def _parameter(values: Float[Tensor, "*shape"]) -> BFloat16[nn.Parameter, "*shape"]:
    """A bfloat16 parameter of its own memory, without gradient."""
    return nn.Parameter(values.detach().to(torch.bfloat16, copy=True), requires_grad=False)
