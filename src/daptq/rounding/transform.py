"""What is done to a weight before it is rounded, and undone on the layer's input: smoothing and a block rotation.

    y = W x = (W diag(s) R) (R diag(1/s) x)

R is symmetric and orthogonal. The layer multiplies its input by ``input_scale`` = 1/s and rotates it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from daptq.errors import InvalidInputError, RecipeError
from daptq.numerics.rotation import fits, rotate
from daptq.numerics.symmetric import symmetric_part
from daptq.rounding.smoothing import smoothing_scale

__all__ = ["TransformConfig", "transform_gram"]


@dataclass(frozen=True, kw_only=True)
class TransformConfig:
    """How the inputs of quantized layers are transformed.

    Attributes:
        rotation_block: Channels of a block of the rotation, a power of two; 0 for none. A layer whose input is not a
            whole number of blocks is left unrotated.
        smoothing: Exponent of the activations' range in the smoothing factor, 0 for none, see `smoothing_scale`.
    """

    rotation_block: int = 0
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        block = self.rotation_block
        if type(block) is not int or block < 0 or block & (block - 1):
            raise RecipeError(f"rotation_block must be 0 or a power of two, got {block!r}. Choose for example 16.")
        if not 0 <= self.smoothing <= 1:
            raise RecipeError(f"smoothing must lie between 0 and 1, got {self.smoothing}. Choose for example 0.15.")

    def apply(
        self, weight: Float[Tensor, "out in"], absmax: Float[Tensor, " in"] | None
    ) -> tuple[Float[Tensor, "out in"], Float[Tensor, " in"] | None, int]:
        """Transforms one weight.

        Args:
            weight: (out, in) finite weight.
            absmax: (in,), largest |activation| of each channel; needed for smoothing only.

        Returns:
            The transformed weight, float32 (out, in), and what the layer has to do to its input: `input_scale`, float32
            (in,) or None, and `rotation_block`, 0 where the blocks do not fit.

        Raises:
            InvalidInputError: Smoothing has no `absmax`, or one that `smoothing_scale` refuses.
        """
        transformed, input_scale = weight.detach().to(torch.float64), None
        if self.smoothing:
            if absmax is None:
                raise InvalidInputError("absmax must be given for smoothing, got None. Calibrate the layer's input.")
            # The float32 factor that the layer will use is the one that is undone, so the product stays exact.
            input_scale = smoothing_scale(weight, absmax, self.smoothing).reciprocal()
            transformed = transformed / input_scale
        block = self.rotation_block
        if not block or not fits(weight.shape[1], block):
            block = 0
        else:
            transformed = rotate(transformed, block)
        return transformed.to(torch.float32), input_scale, block


def transform_gram(
    gram: Float[Tensor, "in in"], input_scale: Float[Tensor, " in"] | None, rotation_block: int
) -> Float[Tensor, "in in"]:
    """The Gram matrix of the transformed inputs, R diag(m) H diag(m) R with m = `input_scale`.

    Args:
        gram: (in, in) Gram matrix of the inputs.
        input_scale: (in,), or None.
        rotation_block: As `TransformConfig.apply` returned it.

    Returns:
        float64 (in, in), symmetric.
    """
    result = gram.to(torch.float64)
    if input_scale is not None:
        factor = input_scale.to(result)
        result = factor[:, None] * result * factor
    if rotation_block:
        result = rotate(rotate(result, rotation_block).mT, rotation_block)
    return symmetric_part(result)
