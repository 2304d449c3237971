"""Spreads a budget evenly: layers get one of two bit-widths in turn, so that the mean keeps to the budget throughout.

It is what one does without looking at the policy, and the baseline that a budget is measured against.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from daptq.allocation.plan import BitPlan, LayerBits
from daptq.errors import InvalidInputError, RecipeError

__all__ = ["EvenConfig", "allocate"]


@dataclass(frozen=True, kw_only=True)
class EvenConfig:
    """Settings of the even spread.

    Attributes:
        budget_bits: Mean bits per weight, scales included, over the layers that are allocated.
    """

    method: ClassVar[str] = "even"

    budget_bits: float

    def __post_init__(self) -> None:
        if not 0 < self.budget_bits < math.inf:
            raise RecipeError(f"budget_bits must be positive and finite, got {self.budget_bits}. Choose for example 3.")


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
