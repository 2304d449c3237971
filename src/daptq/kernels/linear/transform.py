"""What a layer does to its input before it quantizes it: a factor for each channel, then a rotation in blocks.

    t(x) = R diag(input_scale) x

The weight was multiplied by the inverse before it was rounded. The module does not know how the factors were chosen.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from daptq.errors import InvalidInputError
from daptq.numerics.rotation import fits

__all__ = ["check_transform", "transform"]


def check_transform(input_scale: Float[Tensor, " in"] | None, rotation_block: int, in_features: int) -> None:
    """Refuses a transform that a layer of `in_features` channels cannot have; `rotation_block` 0 is no rotation.

    Raises:
        InvalidInputError: A factor is missing, not positive or not finite, or the blocks do not fit.
    """
    if input_scale is not None:
        fit = tuple(input_scale.shape) == (in_features,)
        if not fit or not bool((torch.isfinite(input_scale) & (input_scale > 0)).all()):
            raise InvalidInputError(
                f"input_scale must be positive, finite and of shape ({in_features},), got shape "
                f"{tuple(input_scale.shape)}{' with other values' if fit else ''}. Give one factor per input channel."
            )
    if rotation_block and not fits(in_features, rotation_block):
        raise InvalidInputError(
            f"rotation_block must divide {in_features} input features, got {rotation_block}. Choose 0 for no rotation."
        )


def transform(
    x: Float[Tensor, "*batch in"],
    input_scale: Float[Tensor, " in"] | None,
    rotation: Float[Tensor, "block block"] | None,
) -> Float[Tensor, "*batch in"]:
    """Scales and rotates; what is None is left out.

    Args:
        x: (…, in).
        input_scale: (in,) factor of each channel.
        rotation: (block, block) symmetric orthogonal matrix that is applied to every block of channels.
    """
    if input_scale is not None:
        x = x * input_scale
    if rotation is not None:
        x = (x.unflatten(-1, (-1, len(rotation))) @ rotation).flatten(-2)
    return x
