"""Into the linear layer whose output is the representation: any affine map.

    M (W x + b) + d = (M W) x + (M b + d)

A positive gain for every channel leaves the integers of a quantized layer as they are: its scales take the gain,
exactly for any number of bits. Another map goes into the float weight; a quantized layer is then rounded anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from daptq.interfaces.affine import AffineMap
from daptq.interfaces.contract import Fold, Folded, FoldedLayer, Side, Treatment, bias_of, require_channels, weight_of
from daptq.interfaces.map_class import MapClass

__all__ = ["FOLD", "IntoProducer"]


@dataclass(frozen=True)
class IntoProducer(Fold):
    """The layer that writes the representation takes in the map.

    Declare it only where the layer's output is the representation itself: not where a residual stream or norm follows.

    Attributes:
        producer: Module path of the linear layer.
    """

    method: ClassVar[str] = "into-producer"
    label: ClassVar[str] = "producer-weight"
    side: ClassVar[Side] = "producer"

    producer: str

    @property
    def map_class(self) -> MapClass:
        """Any map."""
        return "affine"

    @property
    def layers(self) -> tuple[str, ...]:
        """The producer."""
        return (self.producer,)

    @property
    def recorded_inputs(self) -> tuple[str, ...]:
        """The producer: it does not read the representation, it writes it."""
        return (self.producer,)

    def folded(self, affine: AffineMap, tensors: Mapping[str, Tensor]) -> Folded:
        """See `Fold.folded`."""
        weight, bias = weight_of(tensors, self.producer), bias_of(tensors, self.producer)
        require_channels(affine, len(weight), self.producer)
        gain = affine.matrix.diagonal()
        layer = FoldedLayer(
            weight=affine.matrix @ weight,
            bias=affine.shift if bias is None else affine(bias),
            gain=gain if affine.is_diagonal and bool((gain > 0).all()) else None,
            restore=lambda folded: torch.linalg.solve(affine.matrix, folded),
        )
        return Folded(layers={self.producer: layer})

    def kind(self, treatments: frozenset[Treatment]) -> str:
        """``"producer-scale"`` where the scales took a gain, else ``"producer-weight"``."""
        return "producer-scale" if "rescaled" in treatments else self.label


FOLD = IntoProducer
