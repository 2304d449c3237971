"""Into the linear layers that read the representation: any affine map.

    W (M z + d) + b = (W M) z + (b + W d)

A bias appears where there was none. A constant u that the layers read in place of the representation (the unconditional
vector of guidance) becomes M^-1 (u - d), so that they answer it as before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from daptq.interfaces.affine import AffineMap
from daptq.interfaces.contract import Fold, Folded, FoldedLayer, Side, bias_of, require_channels, weight_of
from daptq.interfaces.map_class import MapClass

__all__ = ["FOLD", "IntoConsumers"]


@dataclass(frozen=True)
class IntoConsumers(Fold):
    """Every layer that reads the representation takes in the map.

    Attributes:
        consumers: Module paths of all linear layers that read the representation, and nothing else but `constants`.
        constants: Parameter paths of vectors (…, d) that these layers read in place of the representation.
    """

    method: ClassVar[str] = "into-consumers"
    label: ClassVar[str] = "consumer"
    side: ClassVar[Side] = "consumer"

    consumers: tuple[str, ...]
    constants: tuple[str, ...] = ()

    @property
    def map_class(self) -> MapClass:
        """Any map."""
        return "affine"

    @property
    def layers(self) -> tuple[str, ...]:
        """The consumers."""
        return self.consumers

    @property
    def readers(self) -> tuple[str, ...]:
        """The consumers."""
        return self.consumers

    @property
    def parameters(self) -> tuple[str, ...]:
        """The constants."""
        return self.constants

    def folded(self, affine: AffineMap, tensors: Mapping[str, Tensor]) -> Folded:
        """See `Fold.folded`."""
        return Folded(
            layers={layer: _consumer(affine, tensors, layer) for layer in self.consumers},
            parameters={path: _unmapped(affine, tensors[path], path) for path in self.constants},
        )


def _consumer(affine: AffineMap, tensors: Mapping[str, Tensor], layer: str) -> FoldedLayer:
    weight, bias = weight_of(tensors, layer), bias_of(tensors, layer)
    require_channels(affine, weight.shape[1], layer)
    offset = weight @ affine.shift
    return FoldedLayer(
        weight=weight @ affine.matrix,
        bias=offset if bias is None else bias + offset,
        restore=lambda folded: torch.linalg.solve(affine.matrix, folded, left=False),
    )


def _unmapped(affine: AffineMap, constant: Float[Tensor, "... d"], path: str) -> Float[Tensor, "... d"]:
    """M^-1 (u - d)."""
    require_channels(affine, constant.shape[-1], path)
    moved = (constant.detach().to(torch.float64) - affine.shift).reshape(-1, len(affine.shift))
    unmapped: Tensor = torch.linalg.solve(affine.matrix, moved.mT).mT
    return unmapped.reshape(constant.shape)


FOLD = IntoConsumers
