"""Spreads a budget evenly: layers get one of two bit-widths in turn, so that the mean keeps to the budget throughout.

It is what one does without looking at the policy, and the baseline that a budget is measured against.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from daptq.allocation.budget import Budget
from daptq.allocation.contract import AllocationMethod, Layers
from daptq.allocation.plan import BFLOAT16, WEIGHT_BITS, BitPlan, LayerBits
from daptq.errors import InvalidInputError

__all__ = ["ALLOCATION", "EvenConfig", "allocate"]


@dataclass(frozen=True, kw_only=True)
class EvenConfig(AllocationMethod):
    """Settings of the even spread.

    Attributes:
        budget_bits: Mean bits per weight, scales included, over the layers that are allocated.
    """

    method: ClassVar[str] = "even"
    keeps_layers: ClassVar[bool] = False

    budget_bits: float

    def __post_init__(self) -> None:
        Budget("budget_bits", self.budget_bits)  # refuses what is none

    @property
    def candidate_bits(self) -> tuple[int, ...]:
        """All there are."""
        return (*WEIGHT_BITS, BFLOAT16)

    @property
    def budget(self) -> Budget:
        """The mean bits per weight."""
        return Budget("budget_bits", self.budget_bits)

    def allocate(
        self,
        layers: Layers,
        scores: Mapping[str, Mapping[int, float]],  # noqa: ARG002  (it looks at none)
        keep: Mapping[str, str],  # noqa: ARG002  (it keeps no layer)
    ) -> dict[str, LayerBits]:
        """Spreads the budget, see the function `allocate`."""
        sizes = layers.measure(layers.options(self.candidate_bits), self.budget.resource)
        plan = allocate(sizes, self.budget.amount(layers.total_weights))
        return {decision.name: decision for decision in plan.layers}


ALLOCATION = EvenConfig


def allocate(resources: Mapping[str, Mapping[int, float]], budget: float) -> BitPlan:
    """Gives every layer, in order, the largest bits with which the layers so far keep within their share.

    Args:
        resources: Bytes of each layer at each of its possible bits, in execution order.
        budget: Bytes for all layers; a layer's share is proportional to its bytes at its largest bits.

    Returns:
        A plan for the layers of `resources`, in their order, whose total is at most the budget.

    Raises:
        InvalidInputError: The budget is smaller than the smallest plan.
    """
    smallest = math.fsum(min(options.values()) for options in resources.values())
    if not resources or smallest > budget:
        raise InvalidInputError(f"budget must be at least {smallest:.6g} bytes, got {budget:.6g}. Raise it.")
    whole = math.fsum(max(options.values()) for options in resources.values())
    owed, decisions = 0.0, []
    remaining = smallest
    spent = 0.0
    for name, options in resources.items():
        owed += budget * max(options.values()) / whole
        remaining -= min(options.values())
        # Never more than leaves the smallest option for all that follow.
        limit = min(owed, budget - remaining) - spent
        fitting = [bits for bits, size in options.items() if size <= limit]
        bits = max(fitting, default=min(options))
        spent += options[bits]
        decisions.append(LayerBits(name=name, num_bits=bits, reason="even"))
    return BitPlan(tuple(decisions))
