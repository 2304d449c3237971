"""What a linear layer costs to store, in bytes, at every number of bits.

The sizes follow from the on-disk format and from nothing else, so a plan can be weighed before any layer is rounded.
Times are measured and live with the kernels.
"""

from __future__ import annotations

from daptq.allocation.plan import BFLOAT16
from daptq.numerics.pack import packed_length
from daptq.numerics.quantized_matrix import group_count

__all__ = ["layer_bytes", "weight_bytes"]

BFLOAT16_BYTES = 2
FLOAT32_BYTES = 4
# Two int64 numbers: the shape of the unpacked weight.
SHAPE_BYTES = 16


def weight_bytes(
    out_features: int, in_features: int, num_bits: int, *, group_size: int = 0, asymmetric: bool = False
) -> int:
    """Bytes of a layer's weight with scales and zero points: what "mean bits per weight including scales" counts.

    Args:
        out_features: Rows of the weight.
        in_features: Columns of the weight.
        num_bits: 2 to 8 for packed integers with one float32 scale per group, 16 for bfloat16.
        group_size: Columns that share a scale, 0 for one scale per row.
        asymmetric: Whether each scale has a zero point of `num_bits` bits.

    Raises:
        InvalidInputError: There is no grid of `num_bits` bits, or no group of `group_size`.
    """
    if num_bits == BFLOAT16:
        return BFLOAT16_BYTES * out_features * in_features
    groups = group_count(in_features, group_size)
    zero_points = packed_length(groups, num_bits) if asymmetric else 0
    return out_features * (packed_length(in_features, num_bits) + FLOAT32_BYTES * groups + zero_points)


def layer_bytes(
    out_features: int,
    in_features: int,
    num_bits: int,
    *,
    bias: bool,
    group_size: int = 0,
    asymmetric: bool = False,
) -> int:
    """Bytes of a layer's tensors in a checkpoint.

    Static activation scales and input scales are stored in addition; dynamic activations need neither.

    Args:
        out_features: Rows of the weight.
        in_features: Columns of the weight.
        num_bits: 2 to 8 for packed integers, whose bias is float32 and whose shape is stored; 16 for bfloat16.
        bias: Whether the layer has one.
        group_size: As in `weight_bytes`.
        asymmetric: As in `weight_bytes`.

    Raises:
        InvalidInputError: As `weight_bytes`.
    """
    weight = weight_bytes(out_features, in_features, num_bits, group_size=group_size, asymmetric=asymmetric)
    if num_bits == BFLOAT16:
        return weight + BFLOAT16_BYTES * out_features * bias
    return weight + SHAPE_BYTES + FLOAT32_BYTES * out_features * bias
