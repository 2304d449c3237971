"""The operation ``daptq::linear_bfloat16``: float32 activations times a bfloat16 weight, on a processor with AVX2.

Compiled from `bfloat16.cpp` when it is first needed; it reads the weight as it is, which for that lies transposed in
memory.
"""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import BFloat16, Float
from torch import Tensor

from daptq.kernels.compiled import load_source, vector_flags

__all__ = ["NAME", "has_kernel", "multiply", "unavailable"]

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


multiply = torch.ops.daptq.linear_bfloat16.default


def has_kernel(x: Float[Tensor, "*batch in"], weight: Float[Tensor, "out in"]) -> bool:
    """Whether the kernel multiplies `x`: float32 on the CPU, without a gradient, bfloat16 weight."""
    return (
        x.dtype is torch.float32
        and weight.dtype is torch.bfloat16
        and x.is_cpu
        and weight.is_cpu
        and not (x.requires_grad and torch.is_grad_enabled())
        and unavailable() is None
    )
