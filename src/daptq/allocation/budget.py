"""A budget for the layers that an allocation decides about: mean bits per weight, mebibytes, or milliseconds.

The module does not know how a layer's need of a resource is found.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from daptq.errors import RecipeError

__all__ = ["Budget", "Resource"]

Resource = Literal["bytes", "weight bytes", "ms"]

_RESOURCES: Mapping[str, Resource] = {"budget_bits": "weight bytes", "budget_mib": "bytes", "budget_ms": "ms"}


@dataclass(frozen=True)
class Budget:
    """A limit.

    Attributes:
        label: Name of the setting: ``"budget_bits"`` (mean bits per weight, scales included), ``"budget_mib"`` (size of
            the layers in a checkpoint) or ``"budget_ms"`` (measured time of one product with every layer).
        value: The limit, in the unit of the label.
    """

    label: str
    value: float

    def __post_init__(self) -> None:
        if not 0 < self.value < math.inf:
            raise RecipeError(f"{self.label} must be positive and finite, got {self.value}. Choose a larger budget.")

    @property
    def resource(self) -> Resource:
        """What is limited: bytes of the layers, bytes of their weights with scales and zero points, or milliseconds."""
        return _RESOURCES[self.label]

    def amount(self, weights: int) -> float:
        """The limit for layers that have so many weights together, in units of the resource."""
        if self.resource == "weight bytes":
            return self.value * weights / 8
        return self.value * 2**20 if self.resource == "bytes" else self.value

    def check(self, needs: Mapping[str, Mapping[int, float]], weights: int) -> None:
        """Refuses a budget that no plan can keep.

        Args:
            needs: What each layer needs of the resource at each of its possible bits.
            weights: Number of weights of all layers.

        Raises:
            RecipeError: The budget is smaller than what the layers need at their fewest bits.
        """
        smallest, amount = math.fsum(min(by_bits.values()) for by_bits in needs.values()), self.amount(weights)
        if smallest > amount:
            least = self.value * smallest / amount
            raise RecipeError(
                f"{self.label} must be at least {least:.4g} for this policy, got {self.value:.4g}. Raise it, or allow "
                "fewer bits."
            )
