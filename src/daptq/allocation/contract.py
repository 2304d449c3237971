"""The contract of an allocation: how many bits each layer gets.

A method (one file beside this one, which names its configuration ``ALLOCATION``) decides about layers by their names,
sizes and scores. It knows neither the policy nor where the scores come from.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from daptq.allocation.budget import Budget, Resource
from daptq.allocation.plan import LayerBits
from daptq.methods import Method

__all__ = ["AllocationMethod", "Layers"]

Table = Mapping[str, Mapping[int, float]]


@dataclass(frozen=True, kw_only=True)
class Layers:
    """The layers that an allocation decides about.

    Attributes:
        role_bits: Bits that the recipe gives to the role of each layer, by name in execution order.
        idle: Bits of the layers among them that nothing reads: they have no score, but use up a budget.
        weights: Number of weights of each layer.
        head_blocks: Module paths of the transformer blocks of the action head, first to last.
        measure: Returns what each layer needs of a resource at each of the bits that are asked for.
    """

    role_bits: Mapping[str, int]
    idle: Mapping[str, int]
    weights: Mapping[str, int]
    head_blocks: tuple[str, ...]
    measure: Callable[[Mapping[str, tuple[int, ...]], Resource], Table]

    @property
    def scored(self) -> tuple[str, ...]:
        """Names of the layers that have a score: all but idle ones."""
        return tuple(name for name in self.role_bits if name not in self.idle)

    @property
    def total_weights(self) -> int:
        """Number of weights of all layers."""
        return sum(self.weights.values())

    def options(self, bits: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """These bits for every layer, for an idle one its own."""
        return {name: (self.idle[name],) if name in self.idle else bits for name in self.role_bits}


class AllocationMethod(Method):
    """Settings of one allocation.

    Attributes:
        keeps_layers: Whether a layer that is to stay in floating point, for example because it is faster, does so.
        head_only: Whether it decides about the layers of the action head alone.
    """

    keeps_layers: ClassVar[bool] = True

    @property
    def head_only(self) -> bool:
        """By default every layer to be quantized is decided about."""
        return False

    @property
    def candidate_bits(self) -> tuple[int, ...]:
        """Bits that a layer may get beside those of its role, 16 for bfloat16; by default none."""
        return ()

    @property
    def budget(self) -> Budget | None:
        """What the plan, and whatever promotes its layers later, must keep; by default nothing."""
        return None

    def check(self, layers: Layers) -> None:
        """Refuses, before any long work, settings that no plan can fulfil. A budget in milliseconds is not measured.

        Raises:
            RecipeError: The budget is smaller than what the layers need at their fewest bits.
        """
        budget = self.budget
        if budget is not None and budget.resource != "ms":
            options = layers.options(self.candidate_bits)
            budget.check(layers.measure(options, budget.resource), layers.total_weights)

    @abstractmethod
    def allocate(self, layers: Layers, scores: Table, keep: Mapping[str, str]) -> dict[str, LayerBits]:
        """Decides about every layer.

        Args:
            layers: The layers.
            scores: Score of each layer that is not idle at its candidate bits, those of its role and bfloat16; empty
                for a method that needs no scores.
            keep: Layers that stay in bfloat16 whatever their score, with the reason; may name others than `layers`.

        Returns:
            A decision for each of `layers`; they keep the budget. Those about idle layers may be left out: they get
            their bits. The same at each call.

        Raises:
            InvalidInputError: No plan keeps the budget, or a score is no number.
        """
