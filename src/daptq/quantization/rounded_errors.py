"""The error that an interface is left with when a map of it is folded into weights that are rounded afterwards.

A map that makes the representation better may make the weights that it is folded into worse to round. Where a layer of
the fold is rounded with the map inside, held-out states tell the error after that:

- where layers read the representation, of their outputs, relative to the outputs' variance; the mean over the layers;
- where the layer that writes the representation is rounded, of its output;
- otherwise of the representation after the map.

A rounded layer that does neither (a counterpart) adds the relative squared error of its weight, seen through the
inverse of the fold. Where nothing is rounded with a map inside, the fold is exact and there is nothing to look at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from jaxtyping import Float
from torch import Tensor

from daptq.compensation.error import interface_error
from daptq.interfaces.affine import AffineMap
from daptq.interfaces.contract import Fold, Folded, FoldedLayer
from daptq.quantization.folding import Folder, affine_output

__all__ = ["HeldOut", "rounded_errors"]


@dataclass(frozen=True, kw_only=True, eq=False)
class HeldOut:
    """Held-out states at one interface.

    Attributes:
        full: (n, d) representation in full precision.
        quantized: (n, d) representation of the quantized policy.
        inputs: (n, in) inputs of layers of the quantized policy, by layer, where a fold asks for them.
        mean: (d,) mean in full precision over the fitted states.
        sensitivity: (d, d) weight H of squared errors; None weighs every channel alike.
    """

    full: Float[Tensor, "n d"]
    quantized: Float[Tensor, "n d"]
    inputs: Mapping[str, Float[Tensor, "n in"]]
    mean: Float[Tensor, " d"]
    sensitivity: Float[Tensor, "d d"] | None

    def error(self, representation: Float[Tensor, "n d"]) -> float:
        """`interface_error` of a representation in place of the quantized one."""
        return interface_error(representation, self.full, self.mean, self.sensitivity)


def rounded_errors(
    folder: Folder, fold: Fold, maps: Mapping[str, AffineMap], held_out: HeldOut
) -> dict[str, float] | None:
    """The relative error after folding and rounding, by the name of the map; None where no map's fold is rounded.

    Args:
        folder: Folds and rounds as the recipe says.
        fold: Where the maps would go.
        maps: The maps by name, the identity among them.
        held_out: What the maps are judged by.
    """
    folded = {name: folder.folded(fold, affine) for name, affine in maps.items()}
    treated = [folder.treatment(layer, new) for one in folded.values() for layer, new in one.layers.items()]
    if "rounded" not in treated:
        return None
    return {name: _error(folder, fold, affine, folded[name], held_out) for name, affine in maps.items()}


def _error(folder: Folder, fold: Fold, affine: AffineMap, folded: Folded, held_out: HeldOut) -> float:
    read: list[float] = []
    written: float | None = None
    other = 0.0
    for layer, new in folded.layers.items():
        rounded = folder.treatment(layer, new) == "rounded"
        x = fold.read_by(layer, held_out.quantized)
        if layer in fold.recorded_inputs:
            if rounded:
                written = held_out.error(folder.quantized_output(layer, new, held_out.inputs[layer]))
        elif x is not None:
            read.append(_output_error(folder, fold, layer, new, x, held_out))
        elif rounded:
            weight = folder.weight_of(layer)
            other += float((folder.restored(layer, new) - weight).square().sum() / weight.square().sum())
    if read:
        return fmean(read) + other
    return (held_out.error(affine(held_out.quantized)) if written is None else written) + other


def _output_error(
    folder: Folder, fold: Fold, layer: str, new: FoldedLayer, x: Float[Tensor, "n in"], held_out: HeldOut
) -> float:
    """Squared error of the output of a layer that reads the representation, relative to the output's variance."""
    x_full = fold.read_by(layer, held_out.full)
    assert x_full is not None
    full = affine_output(x_full, folder.weight_of(layer), folder.bias_of(layer))
    rounded = folder.treatment(layer, new) == "rounded"
    answered = folder.quantized_output(layer, new, x) if rounded else affine_output(x, new.weight, new.bias)
    return interface_error(answered, full, full.mean(dim=0))
