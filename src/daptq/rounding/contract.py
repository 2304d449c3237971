"""The contract of a rounding method: how a float weight becomes integers.

A method (one file beside this one, which names its configuration ``ROUNDING``) sees one weight matrix at a time, and,
where it needs it, the Gram matrix of that layer's inputs. It knows neither the policy nor which layer this is.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from daptq.methods import Method
from daptq.numerics.quantized_matrix import QuantizedMatrix

__all__ = ["RoundingMethod"]


@dataclass(frozen=True, kw_only=True)
class RoundingMethod(Method):
    """Settings of one rounding method.

    Attributes:
        group_size: Inputs that share a scale: 32, 64 or 128, or 0 for one scale per output channel.
        asymmetric: Whether each scale has a zero point beside it.
    """

    group_size: int = 0
    asymmetric: bool = False

    @abstractmethod
    def round_weight(
        self, weight: Float[Tensor, "out in"], num_bits: int, gram: Float[Tensor, "in in"] | None = None
    ) -> QuantizedMatrix:
        """Rounds one weight.

        Args:
            weight: (out, in) finite float weight.
            num_bits: 2, 3, 4 or 8.
            gram: (in, in), a positive multiple of the sum of x x^T over the layer's inputs x; None unless the method
                needs Gram matrices.

        Returns:
            Integers, scales and zero points with this `num_bits`, `group_size` and `asymmetric`; the same at each call.

        Raises:
            InvalidInputError: The weight is not a finite, non-empty matrix, there is no grid of `num_bits`, or the Gram
                matrix is missing or does not belong to the weight.
        """
