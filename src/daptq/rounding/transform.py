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
from daptq.kernels.linear.transform import transform
from daptq.methods import Needs
from daptq.numerics.rotation import fits, hadamard, rotate
from daptq.numerics.symmetric import symmetric_part
from daptq.rounding.smoothing import smoothing_scale

__all__ = ["LayerTransform", "TransformConfig"]


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerTransform:
    """What is done to the weight and the input of one layer.

    Attributes:
        input_scale: float32 (in,), positive: what the layer multiplies its input by; None for ones.
        rotation_block: Channels of a block of the rotation that follows, 0 for none.
    """

    input_scale: Float[Tensor, " in"] | None = None
    rotation_block: int = 0

    def weight(self, weight: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        """The weight for the transformed input, float32: W diag(1 / input_scale) R."""
        result = weight.detach().to(torch.float64)
        result = result if self.input_scale is None else result / self.input_scale
        return (rotate(result, self.rotation_block) if self.rotation_block else result).to(torch.float32)

    def restored_weight(self, weight: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        """The inverse of `weight`, float32."""
        result = weight.to(torch.float64)
        result = rotate(result, self.rotation_block) if self.rotation_block else result
        return (result if self.input_scale is None else result * self.input_scale).to(torch.float32)

    def gram(self, gram: Float[Tensor, "in in"]) -> Float[Tensor, "in in"]:
        """The Gram matrix of the transformed inputs, R diag(m) H diag(m) R with m = `input_scale`.

        Args:
            gram: (in, in) Gram matrix of the inputs.

        Returns:
            float64 (in, in), symmetric.
        """
        result = gram.to(torch.float64)
        if self.input_scale is not None:
            factor = self.input_scale.to(result)
            result = factor[:, None] * result * factor
        if self.rotation_block:
            result = rotate(rotate(result, self.rotation_block).mT, self.rotation_block)
        return symmetric_part(result)

    def input(self, x: Float[Tensor, "n in"]) -> Float[Tensor, "n in"]:
        """The transformed input, as the layer computes it."""
        return transform(x, self.input_scale, self._rotation())

    def restored_input(self, x: Float[Tensor, "n in"]) -> Float[Tensor, "n in"]:
        """The inverse of `input`."""
        result = transform(x, None, self._rotation())
        return result if self.input_scale is None else result / self.input_scale

    def _rotation(self) -> Float[Tensor, "block block"] | None:
        return hadamard(self.rotation_block) if self.rotation_block else None


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

    @property
    def needs(self) -> Needs:
        """Ranges of the layers' inputs, for smoothing."""
        return Needs(ranges=self.smoothing > 0)

    def of_layer(self, weight: Float[Tensor, "out in"], absmax: Float[Tensor, " in"] | None) -> LayerTransform:
        """The transform of one layer.

        Args:
            weight: (out, in) finite weight.
            absmax: (in,), largest |activation| of each channel; needed for smoothing only.

        Raises:
            InvalidInputError: Smoothing has no `absmax`, or one that `smoothing_scale` refuses.
        """
        input_scale = None
        if self.smoothing:
            if absmax is None:
                raise InvalidInputError("absmax must be given for smoothing, got None. Calibrate the layer's input.")
            # The weight is divided by the float32 factor that the layer uses, so the product stays exact.
            input_scale = smoothing_scale(weight, absmax, self.smoothing).reciprocal()
        block = self.rotation_block
        block = block if block and fits(weight.shape[1], block) else 0
        return LayerTransform(input_scale=input_scale, rotation_block=block)
