"""Round-to-nearest: every linear layer of the language model and the action head is rounded, and nothing else is done.

The baseline of every comparison. It reads no calibration data.
"""

from __future__ import annotations

from daptq.recipes._recipe import Recipe, RoleActivationBits, RoleBits
from daptq.rounding.nearest import NearestConfig, ScaleRule

__all__ = ["round_to_nearest"]


def round_to_nearest(*, weight_bits: int = 4, activation_bits: int = 8, scale: ScaleRule = "searched") -> Recipe:
    """Rounds every linear layer of the language model and the action head; vision and connector stay bfloat16.

    Args:
        weight_bits: Bits of the quantized weights: 2, 3, 4 or 8.
        activation_bits: Bits of the activations, 4 or 8.
        scale: How the scale of each output channel is chosen; the default is the one `da_ptq` uses.

    Raises:
        RecipeError: A setting is outside its range.
    """
    return Recipe(
        name="round-to-nearest",
        weight_bits=RoleBits(language=weight_bits, action_head=weight_bits),
        activation_bits=RoleActivationBits.everywhere(activation_bits),
        rounding=NearestConfig(scale=scale),
    )
