"""The bit plan: how many bits each linear layer gets, and why.

A plan is plain data that survives a round trip through JSON. It does not know the layers' weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from daptq.errors import InvalidInputError
from daptq.numerics.grid import BFLOAT16

__all__ = ["BFLOAT16", "WEIGHT_BITS", "BitPlan", "LayerBits"]

WEIGHT_BITS = (2, 3, 4, 8)


@dataclass(frozen=True, kw_only=True)
class LayerBits:
    """The decision about one layer.

    Attributes:
        name: Module path inside the policy.
        num_bits: 2, 3, 4 or 8 for integers, 16 for bfloat16.
        reason: Why, for example ``"score"`` (kept by its rank) or ``"always"`` (kept by rule).
        score: Sensitivity that the decision looked at, None when it looked at none.
    """

    name: str
    num_bits: int
    reason: str
    score: float | None = None

    def __post_init__(self) -> None:
        if self.num_bits not in (*WEIGHT_BITS, BFLOAT16):
            raise InvalidInputError(
                f"num_bits of layer {self.name} must be one of {', '.join(map(str, WEIGHT_BITS))} or {BFLOAT16}, "
                f"got {self.num_bits}. Choose one of these."
            )

    @property
    def kept(self) -> bool:
        """Whether the layer stays in floating point."""
        return self.num_bits == BFLOAT16


@dataclass(frozen=True)
class BitPlan:
    """Decisions for a set of layers, in the order they were given.

    Attributes:
        layers: One decision per layer, names unique.
    """

    layers: tuple[LayerBits, ...]

    def __post_init__(self) -> None:
        names = [layer.name for layer in self.layers]
        if len(set(names)) != len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise InvalidInputError(f"layers of a bit plan must be unique, got {twice} twice. Name each layer once.")

    def __getitem__(self, name: str) -> LayerBits:
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)

    def __contains__(self, name: str) -> bool:
        return any(layer.name == name for layer in self.layers)

    @property
    def kept(self) -> tuple[str, ...]:
        """Names of the layers that stay in floating point."""
        return tuple(layer.name for layer in self.layers if layer.kept)

    @property
    def quantized(self) -> tuple[str, ...]:
        """Names of the layers that become integers."""
        return tuple(layer.name for layer in self.layers if not layer.kept)

    def total(self, values: Mapping[str, Mapping[int, float]]) -> float:
        """Sum over the layers of a value that depends on the bits, such as a cost or a size; rounded once.

        Args:
            values: Value of each layer at each of its possible bits.
        """
        return math.fsum(values[layer.name][layer.num_bits] for layer in self.layers)

    def replaced(self, decision: LayerBits) -> BitPlan:
        """The same plan with another decision about one of its layers.

        Raises:
            KeyError: The plan has no such layer.
        """
        before = self[decision.name]
        return BitPlan(tuple(decision if layer is before else layer for layer in self.layers))

    def to_json(self) -> list[dict[str, Any]]:
        """The plan as JSON."""
        return [asdict(layer) for layer in self.layers]

    @classmethod
    def from_json(cls, layers: Iterable[Mapping[str, Any]]) -> BitPlan:
        """The plan that `to_json` wrote."""
        return cls(tuple(LayerBits(**layer) for layer in layers))
