"""The contract of an activation scaling: which scales the inputs of a quantized layer are divided by.

A method (one file beside this one, which names its configuration ``ACTIVATION_SCALING``) decides which percentiles of a
layer's inputs are kept, and turns them into scales once the layer's activation bits are known. It does not run a
policy.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Protocol

from jaxtyping import Float
from torch import Tensor

from daptq.errors import RecipeError
from daptq.methods import Method

__all__ = ["ActivationScaling", "InputRanges"]


class InputRanges(Protocol):
    """What calibration data say about the inputs of one layer, as its quantized layer would read them."""

    def percentile(self, percent: float, *, steps: int = 1) -> Float[Tensor, " steps"]:
        """A magnitude that at least `percent` of the values do not exceed.

        Args:
            percent: More than 0, at most 100.
            steps: 1 for one range over everything that was seen, otherwise the number of denoising steps, for one in
                each.

        Returns:
            float32 (steps,).
        """
        ...


class ActivationScaling(Method):
    """Settings of one activation scaling; one that needs ranges overrides `kept_ranges`."""

    def kept_ranges(
        self,
        inputs: InputRanges,  # noqa: ARG002
        *,
        steps: int,  # noqa: ARG002
    ) -> Float[Tensor, " entries"]:
        """What is kept of a layer's inputs; asked only of a method that needs ranges.

        Args:
            inputs: What was measured.
            steps: How many denoising steps the layer runs in, 1 for a layer outside the loop.

        Returns:
            float32 (1,), or (steps,) for a value in each step.

        Raises:
            RecipeError: The method needs ranges and does not override this.
        """
        raise RecipeError(
            f"activation scaling {self.method} must say what it keeps of the ranges that it needs, got no kept_ranges. "
            "Override it, or need no ranges."
        )

    @abstractmethod
    def scales(self, ranges: Float[Tensor, " entries"] | None, num_bits: int) -> Float[Tensor, " entries"] | None:
        """The table of scales of a layer.

        Args:
            ranges: What `kept_ranges` returned; None for a method that needs no ranges.
            num_bits: Bits of an activation, 4 or 8.

        Returns:
            float32 (1,) or (steps,), positive and finite; None to scale every token by its own largest magnitude.
        """
