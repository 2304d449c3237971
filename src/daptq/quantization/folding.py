"""The folding stage: into which weights the map of every interface goes, and the weights after it.

Folding rules, in the order in which ``"auto"`` tries them:

1. ``consumer``: exact, into the consumer when it stays in floating point. With compensation first nothing is
   allocated yet, so the consumer of a map is kept in floating point for this.
2. ``producer-scale``: exact for any bit-width, for a map that treats every channel by itself with a positive gain,
   into the scales and the bias of a quantized producer whose output is the representation itself.
3. ``producer-weight``: any map, into the float weight of such a producer, which is then rounded (again).
4. ``consumer-rounded``: into the float weight of the consumer before it is rounded; the representation stays as it is.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, MutableMapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from daptq.allocation.plan import BitPlan
from daptq.compensation.affine import AffineMap
from daptq.compensation.folding import (
    fold_constant,
    fold_gain_into_producer,
    fold_into_consumer,
    fold_into_producer_weight,
)
from daptq.errors import RecipeError
from daptq.layers.quantized_linear import QuantizedLinear
from daptq.packing.checkpoint import replace_module
from daptq.policies.contract import Interface, Policy
from daptq.quantization.interfaces import interfaces_of
from daptq.quantization.recipe import Folding, Recipe
from daptq.quantization.rounding import Rounder

__all__ = ["FoldedInterface", "check_folding", "consumers_to_keep", "fold"]

LOG = logging.getLogger(__name__)

KEPT_FOR_FOLDING = "folding"


@dataclass(frozen=True, kw_only=True)
class FoldedInterface:
    """Where the map of one interface went.

    Attributes:
        observed: Module path that names the interface.
        kind: ``"none"``, or a rule of the module's list.
        layer: Module path of the layer whose weight changed, None when none did.
        constants: Parameter paths of the constants that were moved.
        rounding_error: Relative error of rounding the folded weight, None when it was not rounded.
    """

    observed: str
    kind: str
    layer: str | None = None
    constants: tuple[str, ...] = ()
    rounding_error: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The decision as a JSON object."""
        return {**asdict(self), "constants": list(self.constants)}


def check_folding(policy: Policy, recipe: Recipe) -> None:
    """Refuses a folding that the policy's interfaces do not allow, before any long work.

    Raises:
        RecipeError: The recipe folds into producers, and a producer's output is not the representation itself.
    """
    if recipe.compensation is None or recipe.folding != "producer":
        return
    for interface in interfaces_of(policy, recipe):
        if not interface.exact_producer:
            raise RecipeError(
                f"folding must be 'auto' or 'consumer' for the interface {interface.observed}, got 'producer'. The "
                f"output of {interface.producer} is not the representation itself; choose another folding."
            )


def consumers_to_keep(policy: Policy, recipe: Recipe, maps: Mapping[str, AffineMap] | None = None) -> dict[str, str]:
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
    return {
        interface.consumer: KEPT_FOR_FOLDING
        for interface in interfaces_of(policy, recipe)
        if maps is None or not maps[interface.observed].is_identity
    }


def fold(
    policy: Policy,
    interfaces: tuple[Interface, ...],
    maps: Mapping[str, AffineMap],
    plan: BitPlan,
    layers: MutableMapping[str, QuantizedLinear],
    folding: Folding,
    rounder: Rounder,
) -> tuple[FoldedInterface, ...]:
    """Folds the map of every interface; the policy and `layers` are changed in place.

    Args:
        policy: Floating-point policy whose modules may be replaced; its tensors are not written to.
        interfaces: What the maps belong to.
        maps: The map of every interface by observed module; empty when nothing is compensated.
        plan: Which layers are quantized.
        layers: The quantized layers.
        folding: Where maps go.
        rounder: Rounds the weights that maps were folded into.
    """
    return tuple(
        _fold_one(policy, interface, maps[interface.observed], plan, layers, folding, rounder)
        for interface in interfaces
        if interface.observed in maps
    )


def _fold_one(
    policy: Policy,
    interface: Interface,
    affine: AffineMap,
    plan: BitPlan,
    layers: MutableMapping[str, QuantizedLinear],
    folding: Folding,
    rounder: Rounder,
) -> FoldedInterface:
    observed = interface.observed
    kind = _kind(interface, affine, plan, folding)
    LOG.info("%s: folding %s", observed, kind)
    if kind == "none":
        return FoldedInterface(observed=observed, kind=kind)
    if kind.startswith("producer"):
        error = _into_producer(policy, interface.producer, affine, plan, layers, rounder, kind)
        return FoldedInterface(observed=observed, kind=kind, layer=interface.producer, rounding_error=error)
    error = _into_consumer(policy, interface.consumer, affine, plan, layers, rounder)
    for path in interface.constants:
        parent, _, leaf = path.rpartition(".")
        moved = fold_constant(policy.get_parameter(path), affine)
        setattr(policy.get_submodule(parent), leaf, nn.Parameter(moved, requires_grad=False))
    return FoldedInterface(
        observed=observed,
        kind=kind,
        layer=interface.consumer,
        constants=interface.constants,
        rounding_error=error,
    )


def _kind(interface: Interface, affine: AffineMap, plan: BitPlan, folding: Folding) -> str:
    """The first rule of the module's list that applies."""
    if affine.is_identity:
        return "none"
    into_producer = interface.exact_producer and folding != "consumer"
    if plan[interface.consumer].kept and folding != "producer":
        return "consumer"
    if into_producer:
        positive = affine.is_diagonal and bool((affine.matrix.diagonal() > 0).all())
        return "producer-scale" if positive and not plan[interface.producer].kept else "producer-weight"
    return "consumer-rounded"


def _into_consumer(
    policy: Policy,
    name: str,
    affine: AffineMap,
    plan: BitPlan,
    layers: MutableMapping[str, QuantizedLinear],
    rounder: Rounder,
) -> float | None:
    """Folds into the consumer; returns the error of rounding when it is quantized."""
    weight, bias = fold_into_consumer(*_weight_and_bias(policy, name), affine)
    if plan[name].kept:
        replace_module(policy, name, _linear(weight, bias))
        return None
    bits = plan[name].num_bits
    transformed = rounder.transformed(name, weight)
    rounded = rounder.round(name, transformed, bits)
    layers[name] = rounder.layer(name, rounded, bias)
    return float((rounded.dequantize(torch.float64) - transformed).norm() / transformed.double().norm())


def _into_producer(
    policy: Policy,
    name: str,
    affine: AffineMap,
    plan: BitPlan,
    layers: MutableMapping[str, QuantizedLinear],
    rounder: Rounder,
    kind: str,
) -> float | None:
    """Folds into the producer; returns the error of rounding its weight again."""
    weight, bias = _weight_and_bias(policy, name)
    bits = plan[name].num_bits
    if kind == "producer-scale":
        before = layers[name]
        scale, new_bias = fold_gain_into_producer(
            before.weight_scale, before.bias, affine.matrix.diagonal(), affine.shift
        )
        layers[name] = rounder.layer(name, replace(before.quantized_matrix(), scale=scale), new_bias)
        return None
    if plan[name].kept:
        # A linear layer in floating point takes W' = M W and b' = M b + d without a second rounding.
        folded = affine.matrix @ weight.double()
        new_bias = affine.shift if bias is None else affine(bias)
        replace_module(policy, name, _linear(folded.float(), new_bias.float()))
        return None

    # The map acts on rows and the transform of the input on columns: their order does not matter.
    transformed = rounder.transformed(name, weight)
    result = fold_into_producer_weight(transformed, bias, affine, lambda values: rounder.round(name, values, bits))
    layers[name] = rounder.layer(name, result.weight, result.bias)
    return result.rounding_error


def _weight_and_bias(policy: Policy, name: str) -> tuple[Float[Tensor, "out in"], Float[Tensor, " out"] | None]:
    tensors = policy.tensors()
    return tensors[f"{name}.weight"], tensors.get(f"{name}.bias")


def _linear(weight: Float[Tensor, "out in"], bias: Float[Tensor, " out"]) -> nn.Linear:
    """A linear layer with these values."""
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight = nn.Parameter(weight, requires_grad=False)
    layer.bias = nn.Parameter(bias, requires_grad=False)
    return layer
