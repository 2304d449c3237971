"""The schema of the operation ``daptq::linear_w4a8`` and its shape rule for tracing; `reference.py` implements it.

W4A8 names the usual case: weights of 2, 3, 4 or 8 bits (`num_bits`), activations quantized to 4 or 8 bits inside, with
one scale per row or with a given one. The operation has no gradient.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

__all__ = ["NAME"]

NAME = "daptq::linear_w4a8"

torch.library.define(
    NAME,
    "(Tensor x, Tensor weight_packed, Tensor weight_scale, Tensor? bias, int in_features, int num_bits, "
    "int activation_bits=8, Tensor? activation_scale=None) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@torch.library.register_fake(NAME)  # type: ignore[untyped-decorator]
def _shape(
    x: Float[Tensor, "m in"],
    weight_packed: UInt8[Tensor, "out bytes"],
    weight_scale: Float[Tensor, "out 1"],  # noqa: ARG001  (the schema's arguments)
    bias: Float[Tensor, " out"] | None,  # noqa: ARG001
    in_features: int,  # noqa: ARG001
    num_bits: int,  # noqa: ARG001
    activation_bits: int = 8,  # noqa: ARG001
    activation_scale: Float[Tensor, ""] | None = None,  # noqa: ARG001
) -> Float[Tensor, "m out"]:
    return x.new_empty((x.shape[0], weight_packed.shape[0]))
