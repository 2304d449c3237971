"""Into the weight of the norm that writes the representation: a gain per channel, and a shift where it has a bias.

g (w x^ + b) + d = (g w) x^ + (g b + d),   x^ the normalised input

"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from daptq.interfaces.affine import AffineMap
from daptq.interfaces.contract import Fold, Folded, Side, require_channels
from daptq.interfaces.map_class import MapClass, require_class

__all__ = ["FOLD", "IntoNorm"]


@dataclass(frozen=True)
class IntoNorm(Fold):
    """A LayerNorm or an RMSNorm whose output is the representation takes in the map.

    Attributes:
        norm: Module path of the norm; it multiplies what it has normalised by the parameter ``weight``.
        bias: Whether it adds a parameter ``bias``, so that it can take a shift.
    """

    method: ClassVar[str] = "into-norm"
    label: ClassVar[str] = "norm"
    side: ClassVar[Side] = "producer"

    norm: str
    bias: bool = False

    @property
    def map_class(self) -> MapClass:
        """A gain for every channel, with a shift where the norm has a bias."""
        return "diagonal" if self.bias else "gain"

    @property
    def layers(self) -> tuple[str, ...]:
        """None: a norm is never rounded."""
        return ()

    @property
    def parameters(self) -> tuple[str, ...]:
        """Weight and bias of the norm."""
        return (f"{self.norm}.weight", *((f"{self.norm}.bias",) if self.bias else ()))

    def folded(self, affine: AffineMap, tensors: Mapping[str, Tensor]) -> Folded:
        """See `Fold.folded`."""
        require_class(affine, self.map_class)
        weight, *bias = (tensors[path].detach().to(torch.float64) for path in self.parameters)
        require_channels(affine, len(weight), self.norm)
        gain = affine.matrix.diagonal()
        changed = [gain * weight, *(gain * b + affine.shift for b in bias)]
        return Folded(parameters=dict(zip(self.parameters, changed, strict=True)))


FOLD = IntoNorm
