"""`BFloat16Linear`: a linear layer kept in bfloat16 that multiplies in the dtype of its activations.

Float32 activations on a processor with AVX2 go to ``daptq::linear_bfloat16``. Everything else goes to torch, with a
copy of the weight in the activations' dtype that is dropped after the call. Either way the result is that of a linear
layer with the weight rounded to bfloat16, up to the rounding of sums.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import BFloat16, Float
from torch import Tensor, nn
from typing_extensions import Self

from daptq.kernels.linear.bfloat16 import has_kernel, multiply
from daptq.layers.stand_in import StandIn

__all__ = ["BFloat16Linear"]


class BFloat16Linear(nn.Module):
    """y = x W^T + b, W and b resident in bfloat16, arithmetic in the dtype of x.

    The state dict and `named_parameters` hold ``weight``, bfloat16 (out, in) and transposed in memory, and ``bias``.

    Args:
        weight: (out, in); rounded to bfloat16 if it is not.
        bias: (out,), or None.
        compute_dtype: Dtype that `weight` answers, that of the policy's activations. A cast of the module changes it.

    Attributes:
        bias: bfloat16 (out,), or None.
        in_features: Input channels.
        out_features: Output channels.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        weight: Float[Tensor, "out in"],
        bias: Float[Tensor, " out"] | None,
        *,
        compute_dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.compute_dtype = compute_dtype
        # The property of this name answers for it.
        self._parameters["weight"] = nn.Parameter(_bfloat16(weight.t()).t(), requires_grad=False)
        shift = None if bias is None else nn.Parameter(_bfloat16(bias), requires_grad=False)
        self.register_parameter("bias", shift)

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> Self:
        """The same layer with its weight and bias rounded to bfloat16."""
        return cls(linear.weight, linear.bias)

    @property
    def resident_weight(self) -> nn.Parameter:
        """The weight as it is in memory, bfloat16 (out, in) unless the module was cast."""
        resident = self._parameters["weight"]
        assert isinstance(resident, nn.Parameter)
        return resident

    @property
    def weight(self) -> Tensor:
        """The weight in `compute_dtype`, for code that casts activations to its dtype; converted when it is read."""
        resident = self.resident_weight
        if resident.dtype == self.compute_dtype:
            return resident

        def read() -> Tensor:
            return resident.detach().to(self.compute_dtype)

        if torch.compiler.is_compiling():  # The compiler drops a conversion of which only the dtype is asked.
            return read()

        shape = (self.out_features, self.in_features)
        return StandIn(shape, dtype=self.compute_dtype, device=resident.device, read=read)

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """Multiplies in the dtype of `x`."""
        # A small product takes 4 microseconds: parameters are read without a detour, and nothing is reshaped in vain.
        parameters = self._parameters
        weight, bias = parameters["weight"], parameters["bias"]
        assert weight is not None
        if not has_kernel(x, weight):
            return nn.functional.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
        if x.dim() == 2:
            return multiply(x, weight, bias)
        rows: Tensor = multiply(x.reshape(-1, self.in_features), weight, bias)
        return rows.view(*x.shape[:-1], self.out_features)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves or casts the layer, and what `weight` answers with it."""
        probe = torch.empty(0, dtype=self.compute_dtype, device=self.resident_weight.device)
        self.compute_dtype = fn(probe).dtype
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def extra_repr(self) -> str:
        """Sizes."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def _bfloat16(values: Float[Tensor, "*shape"]) -> BFloat16[Tensor, "*shape"]:
    """A contiguous copy in bfloat16."""
    return values.detach().to(torch.bfloat16, copy=True, memory_format=torch.contiguous_format)
