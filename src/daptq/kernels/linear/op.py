"""The schemas of the linear operations and their shape rule for tracing; `reference.py` implements them.

``daptq::linear_w4a8`` quantizes its activations to 4 or 8 bits inside (`activation_bits`), with one scale per row or
with a given one, and multiplies integers; ``daptq::linear_w4a16`` multiplies floating-point activations. W4 names the
usual case: weights have 2, 3, 4 or 8 bits (`num_bits`), so W8A8, W3A8 or W8A16 are calls of the same operations. A
weight has one scale per output channel, or one for each group of 32, 64 or 128 inputs (`group_size`), and zero points
where it is asymmetric. The operations have no gradient.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

__all__ = ["W4A8", "W4A16", "like_product"]

W4A8 = "daptq::linear_w4a8"
W4A16 = "daptq::linear_w4a16"

_TAGS = (torch.Tag.pt2_compliant_tag,)
_WEIGHT = "Tensor weight_packed, Tensor weight_scale, Tensor? bias, int in_features, int num_bits"
_GRID = "int group_size=0, Tensor? weight_zero_point=None"

torch.library.define(
    W4A8,
    f"(Tensor x, {_WEIGHT}, int activation_bits=8, Tensor? activation_scale=None, {_GRID}) -> Tensor",
    tags=_TAGS,
)
torch.library.define(W4A16, f"(Tensor x, {_WEIGHT}, {_GRID}) -> Tensor", tags=_TAGS)


@torch.library.register_fake(W4A8)  # type: ignore[untyped-decorator]
@torch.library.register_fake(W4A16)  # type: ignore[untyped-decorator]
def like_product(
    x: Float[Tensor, "m in"], weight_packed: UInt8[Tensor, "out bytes"], *_: object, **__: object
) -> Float[Tensor, "m out"]:
    """An empty product, float32 (m, out): what tracing needs to know of an operation that reads the packed weight."""
    return x.new_empty((x.shape[0], weight_packed.shape[0]), dtype=torch.float32)
