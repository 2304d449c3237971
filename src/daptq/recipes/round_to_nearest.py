"""Round-to-nearest: every linear layer of the language model and the action head is rounded, and nothing else is done.

The baseline of every comparison. It reads no calibration data.
"""

from __future__ import annotations

from daptq.quantization.recipe import Recipe, RoleActivationBits, RoleBits
from daptq.rounding.nearest import NearestConfig, ScaleRule

__all__ = ["round_to_nearest"]


def round_to_nearest(
    *,
    weight_bits: int = 4,
    activation_bits: int = 8,
    scale: ScaleRule = "searched",
    group_size: int = 0,
    asymmetric: bool = False,
    float_where_faster: bool = False,
) -> Recipe:
    """Rounds every linear layer of the language model and the action head; vision and connector stay bfloat16.

    Args:
        weight_bits: Bits of the quantized weights: 2, 3, 4 or 8.
        activation_bits: Bits of the activations, 4 or 8, or 16 for floating point.
        scale: How scales of weights are chosen: ``"searched"``, the one of least squared error; ``"absmax"``, by the
            largest weight.
        group_size: Inputs that share a scale of a weight: 32, 64 or 128, or 0 for one scale per output channel.
        asymmetric: Whether each scale of a weight has a zero point.
        float_where_faster: Whether layers that this machine multiplies faster in bfloat16 stay bfloat16.

    Raises:
        RecipeError: A setting is outside its range.
    """
    return Recipe(
        name="round-to-nearest",
        weight_bits=RoleBits(language=weight_bits, action_head=weight_bits),
        activation_bits=RoleActivationBits.everywhere(activation_bits),
        rounding=NearestConfig(scale=scale, group_size=group_size, asymmetric=asymmetric),
        float_where_faster=float_where_faster,
    )
