"""What the methods of every kind have in common: a name, and a statement of what they read.

A method is a frozen keyword-only dataclass of settings that does its own work; the contract of its kind (rounding,
activation scaling, allocation, sensitivity, compensation, drift model) says which. The pipeline asks a method what it
needs and never which method it is.
"""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass, fields
from typing import ClassVar

__all__ = ["Method", "Needs"]


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What is measured before a method can do its work. A need that rests on another one implies it.

    Attributes:
        data: Calibration data.
        ranges: Ranges of the inputs of quantized layers.
        grams: The Gram matrix of every quantized layer's inputs.
        weighted_grams: These, with every token weighted by how much the drift depends on it.
        metric: The matrix G of the drift model.
        interface_sensitivities: The matrix H of every interface: what an error of its representation does to the robot.
        gradients: Gradients of the policy's predictions. A layer whose weight stays in a file has none, so a recipe
            that takes them with respect to its weight is refused.
        scores: A score of every layer that is decided about.
        costs: Scores that say what rounding to each number of bits costs.
    """

    data: bool = False
    ranges: bool = False
    grams: bool = False
    weighted_grams: bool = False
    metric: bool = False
    interface_sensitivities: bool = False
    gradients: bool = False
    scores: bool = False
    costs: bool = False

    def __post_init__(self) -> None:
        implied = {
            "grams": self.weighted_grams,
            "metric": self.weighted_grams or self.interface_sensitivities,
            "gradients": self.weighted_grams or self.interface_sensitivities,
            "scores": self.costs,
            "data": any(getattr(self, need.name) for need in fields(self)),
        }
        for need, wanted in implied.items():
            object.__setattr__(self, need, getattr(self, need) or wanted)

    def __or__(self, other: Needs) -> Needs:
        """What two methods need together."""
        return Needs(**{need.name: getattr(self, need.name) or getattr(other, need.name) for need in fields(self)})


class Method(ABC):
    """Settings of one method; a frozen keyword-only dataclass, validated when built.

    Attributes:
        method: Name of the method in the catalog and in a recipe.
    """

    method: ClassVar[str]

    @property
    def needs(self) -> Needs:
        """What is measured for this method; by default nothing."""
        return Needs()
