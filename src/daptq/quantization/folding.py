"""Folding: into which weights the map of every interface goes, and the weights after it.

An interface declares folds, see `daptq.interfaces.contract`. Of those that can take a map, the recipe's rules choose:

1. the first one, in the order declared, all of whose layers stay in floating point: there every map of its class folds
   exactly. With compensation first nothing is allocated yet, so the layers of a consumer's fold are kept in floating
   point for this;
2. else the last one. A layer that only takes a positive gain for every output keeps its integers, and its scales take
   the gain, exactly for any number of bits; every other quantized layer is rounded anew with the map inside.
"""

from __future__ import annotations

import logging
from collections import ChainMap
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from daptq.allocation.plan import BitPlan
from daptq.errors import RecipeError
from daptq.interfaces.affine import AffineMap
from daptq.interfaces.contract import Fold, Folded, FoldedLayer, Interface, Treatment, bias_of, weight_of
from daptq.interfaces.map_class import belongs
from daptq.layers.quantized_linear import QuantizedLinear
from daptq.numerics.quantized_matrix import QuantizedMatrix
from daptq.packing.checkpoint import replace_module
from daptq.policies.contract import Policy
from daptq.quantization.interfaces import interfaces_of
from daptq.quantization.recipe import Folding, Recipe
from daptq.quantization.rounding import Rounder

__all__ = ["FoldedInterface", "Folder", "affine_output", "check_folding", "layers_to_keep"]

LOG = logging.getLogger(__name__)

KEPT_FOR_FOLDING = "folding"


@dataclass(frozen=True, kw_only=True)
class FoldedInterface:
    """Where the map of one interface went.

    Attributes:
        interface: Name of the interface.
        kind: ``"none"``, or what the fold calls it, such as ``"consumer"`` or ``"consumer-rounded"``.
        layers: Module paths of the linear layers whose weights changed.
        parameters: Paths of the other parameters that changed.
        rounding_errors: Relative error of rounding the new weight, of each layer that was rounded.
    """

    interface: str
    kind: str
    layers: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    rounding_errors: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The decision as a JSON object."""
        return {**asdict(self), "layers": list(self.layers), "parameters": list(self.parameters)}


def check_folding(policy: Policy, recipe: Recipe) -> None:
    """Refuses a folding that the policy's interfaces do not allow, before any long work.

    Raises:
        RecipeError: An interface has no fold on the side that the recipe asks for.
    """
    if recipe.compensation is None or recipe.folding == "auto":
        return
    for interface in interfaces_of(policy, recipe):
        if not any(fold.side == recipe.folding for fold in interface.folds):
            others = sorted({fold.side for fold in interface.folds})
            raise RecipeError(
                f"folding must be 'auto' or {' or '.join(map(repr, others))} for the interface {interface.name}, got "
                f"{recipe.folding!r}. It has no fold into a {recipe.folding}; choose another folding."
            )


def layers_to_keep(policy: Policy, recipe: Recipe, maps: Mapping[str, AffineMap] | None = None) -> dict[str, str]:
    """Layers that stay in floating point so that maps fold into them exactly, with the reason.

    Args:
        policy: Says which interfaces there are.
        recipe: Folding and order.
        maps: The map of every interface, when it is known before bits are allocated.
    """
    if recipe.compensation is None or recipe.folding == "producer":
        return {}
    if recipe.folding == "auto" and recipe.order == "allocation-first":
        return {}
    kept: dict[str, str] = {}
    for interface in interfaces_of(policy, recipe):
        if maps is None or not maps[interface.name].is_identity:
            fold = next((fold for fold in interface.folds if fold.side == "consumer"), None)
            kept |= {} if fold is None else dict.fromkeys(fold.layers, KEPT_FOR_FOLDING)
    return kept


class Folder:
    """Puts maps into the weights of a policy.

    Args:
        policy: Full-precision policy, which is not changed.
        plan: Which layers are quantized.
        folding: On which side of an interface its map goes.
        rounder: Rounds the weights that maps were folded into.
    """

    def __init__(self, policy: Policy, plan: BitPlan, folding: Folding, rounder: Rounder) -> None:
        self._plan, self._folding, self._rounder = plan, folding, rounder
        self._tensors = policy.tensors()

    def fold_of(self, interface: Interface, affine: AffineMap | None = None) -> Fold:
        """The fold that takes maps of an interface, or this one; see the module."""
        allowed = [
            fold
            for fold in interface.folds
            if self._folding in ("auto", fold.side)
            and (affine is None or belongs(affine, fold.map_class, fold.map_heads))
        ]
        exact = (fold for fold in allowed if not any(self._quantized(layer) for layer in fold.layers))
        return next(exact, allowed[-1])

    def put(
        self,
        maps: Mapping[str, AffineMap],
        interfaces: Iterable[Interface],
        target: Policy,
        layers: MutableMapping[str, QuantizedLinear],
    ) -> tuple[FoldedInterface, ...]:
        """Folds the map of every interface.

        Args:
            maps: The map of every interface by name; an interface without one is left out.
            interfaces: What the maps belong to.
            target: Floating-point policy whose modules and parameters are replaced; its tensors are not written to.
            layers: The quantized layers, some of which are replaced.
        """
        folds = {
            interface.name: self.fold_of(interface, maps[interface.name])
            for interface in interfaces
            if interface.name in maps
        }
        parameters: dict[str, Tensor] = {}
        changed: dict[str, FoldedLayer] = {}
        for name, fold in folds.items():
            if not maps[name].is_identity:
                # Two folds may change one layer: the second finds what the first has left.
                present = ChainMap(parameters, _tensors_of(changed), cast("dict[str, Tensor]", self._tensors))
                folded = fold.folded(maps[name], present)
                parameters |= folded.parameters
                changed |= {layer: _after(changed.get(layer), new) for layer, new in folded.layers.items()}
        for path, value in parameters.items():
            parent, _, leaf = path.rpartition(".")
            setattr(target.get_submodule(parent), leaf, nn.Parameter(value.float(), requires_grad=False))
        errors: dict[str, float] = {}
        for layer, new in changed.items():
            if not self._quantized(layer):
                replace_module(target, layer, new.linear())
            elif new.gain is not None:
                layers[layer] = self._rescaled(layer, layers[layer], new)
            else:
                rounded, errors[layer] = self.rounded(layer, new)
                layers[layer] = self._rounder.layer(layer, rounded, _float(new.bias))
        return tuple(self._described(name, fold, maps[name], changed, errors) for name, fold in folds.items())

    def recorded(self, fold: Fold) -> tuple[str, ...]:
        """Layers of a fold that may be rounded with a map inside and whose inputs tell what that does."""
        return tuple(layer for layer in fold.recorded_inputs if self._quantized(layer))

    def folded(self, fold: Fold, affine: AffineMap) -> Folded:
        """The weights of the full-precision policy with one map inside."""
        return fold.folded(affine, self._tensors)

    def weight_of(self, layer: str) -> Float[Tensor, "out in"]:
        """The weight of a layer in full precision, float64."""
        return weight_of(self._tensors, layer)

    def bias_of(self, layer: str) -> Float[Tensor, " out"] | None:
        """The bias of a layer in full precision, float64; None where it has none."""
        return bias_of(self._tensors, layer)

    def quantized_output(self, layer: str, new: FoldedLayer, x: Float[Tensor, "n in"]) -> Float[Tensor, "n out"]:
        """What a quantized layer that has taken in a map answers, rounding and quantized inputs included, float64."""
        rounded, _ = self.rounded(layer, new)
        weight = self._rounder.restored(layer, rounded.dequantize())
        return affine_output(self._rounder.quantized_input(layer, x), weight, new.bias)

    def restored(self, layer: str, new: FoldedLayer) -> Float[Tensor, "out in"]:
        """The rounded weight of a layer that has taken in a map, on the scale of its weight before, float64."""
        rounded, _ = self.rounded(layer, new)
        return new.restore(self._rounder.restored(layer, rounded.dequantize()).to(torch.float64))

    def rounded(self, layer: str, new: FoldedLayer) -> tuple[QuantizedMatrix, float]:
        """The new weight of a quantized layer, rounded for its transformed input, and the relative error of that."""
        transformed = self._rounder.transformed(layer, new.weight.float().contiguous())
        rounded = self._rounder.round(layer, transformed, self._plan[layer].num_bits)
        error = (rounded.dequantize(torch.float64) - transformed).norm() / transformed.double().norm()
        return rounded, float(error)

    def treatment(self, layer: str, new: FoldedLayer) -> Treatment:
        """What is done with a layer that has taken in a map."""
        if not self._quantized(layer):
            return "float"
        return "rounded" if new.gain is None else "rescaled"

    def _quantized(self, layer: str) -> bool:
        return not self._plan[layer].kept

    def _rescaled(self, layer: str, before: QuantizedLinear, new: FoldedLayer) -> QuantizedLinear:
        assert new.gain is not None
        scale = (before.weight_scale.to(torch.float64) * new.gain.unsqueeze(1)).float()
        return self._rounder.layer(layer, replace(before.quantized_matrix(), scale=scale), _float(new.bias))

    def _described(
        self,
        name: str,
        fold: Fold,
        affine: AffineMap,
        changed: Mapping[str, FoldedLayer],
        errors: Mapping[str, float],
    ) -> FoldedInterface:
        if affine.is_identity:
            LOG.info("%s: nothing to fold", name)
            return FoldedInterface(interface=name, kind="none")
        kind = fold.kind(frozenset(self.treatment(layer, changed[layer]) for layer in fold.layers))
        LOG.info("%s: folding %s", name, kind)
        return FoldedInterface(
            interface=name,
            kind=kind,
            layers=fold.layers,
            parameters=fold.parameters,
            rounding_errors={layer: errors[layer] for layer in fold.layers if layer in errors},
        )


def affine_output(
    x: Float[Tensor, "n in"], weight: Float[Tensor, "out in"], bias: Float[Tensor, " out"] | None
) -> Float[Tensor, "n out"]:
    """W x + b in float64."""
    product = x.to(torch.float64) @ weight.to(torch.float64).mT
    return product if bias is None else product + bias


def _after(before: FoldedLayer | None, new: FoldedLayer) -> FoldedLayer:
    """A layer that has taken in a second map."""
    if before is None:
        return new
    gain = None if before.gain is None or new.gain is None else before.gain * new.gain
    return replace(new, gain=gain, restore=lambda weight: before.restore(new.restore(weight)))


def _tensors_of(changed: Mapping[str, FoldedLayer]) -> dict[str, Tensor]:
    """Weights and biases by name."""
    weights = {f"{layer}.weight": new.weight for layer, new in changed.items()}
    return weights | {f"{layer}.bias": new.bias for layer, new in changed.items() if new.bias is not None}


def _float(bias: Float[Tensor, " out"] | None) -> Float[Tensor, " out"] | None:
    return None if bias is None else bias.float()
