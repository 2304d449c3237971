"""One decision for every linear layer of a policy: what the allocation of the recipe says, or the bits of its role."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from torch import nn

from daptq.allocation.budget import Resource
from daptq.allocation.contract import Layers
from daptq.allocation.plan import BFLOAT16, WEIGHT_BITS, BitPlan, LayerBits
from daptq.allocation.resources import layer_bytes, weight_bytes
from daptq.errors import InvalidInputError
from daptq.policies.contract import Policy
from daptq.quantization.layer_times import layer_times
from daptq.quantization.recipe import Recipe

__all__ = [
    "bit_plan",
    "calibrated_layers",
    "candidate_bits",
    "check_allocation",
    "float_linear",
    "layer_resources",
    "layers_in_scope",
    "layers_to_allocate",
]

ALL_BITS: tuple[int, ...] = (*WEIGHT_BITS, BFLOAT16)


def bit_plan(
    policy: Policy, recipe: Recipe, *, scores: Mapping[str, Mapping[int, float]], keep: Mapping[str, str]
) -> BitPlan:
    """The bits of every linear layer, in execution order.

    Args:
        policy: Says which layers there are, with their roles and sizes.
        recipe: Bits by role, and the allocation.
        scores: What each layer in scope scores at each of its bits; empty where nothing is scored yet, so that an
            allocation that needs scores does not decide yet.
        keep: Reason by name of layers that stay bfloat16 whatever their score.
    """
    allocation = recipe.allocation
    allocated: Mapping[str, LayerBits] = {}
    if allocation is not None and (scores or not allocation.needs.scores):
        allocated = allocation.allocate(layers_to_allocate(policy, recipe), scores, keep)

    candidates, idle = candidate_bits(policy, recipe), policy.idle_layers()

    def decide(name: str, bits: int | None) -> LayerBits:
        if bits is None:
            return LayerBits(name=name, num_bits=BFLOAT16, reason="role")
        if name in idle and name not in keep:
            return LayerBits(name=name, num_bits=min(candidates[name]), reason="idle")
        if name in allocated:
            return allocated[name]
        if name in keep:
            return LayerBits(name=name, num_bits=BFLOAT16, reason=keep[name])
        return LayerBits(name=name, num_bits=bits, reason="role")

    return BitPlan(tuple(decide(name, recipe.weight_bits.of(role)) for name, role in policy.linear_layers().items()))


def candidate_bits(policy: Policy, recipe: Recipe) -> dict[str, tuple[int, ...]]:
    """The bits, bfloat16 left out, that each layer to be quantized may get, in execution order; an idle one the fewest.

    A chunk does not depend on an idle layer: it needs no score to be rounded as far as the recipe rounds any.
    """
    scope, idle = set(_in_scope(policy, recipe)), policy.idle_layers()
    several = () if recipe.allocation is None else recipe.allocation.candidate_bits
    if recipe.verification is not None:
        several = several or ALL_BITS
    options: dict[str, tuple[int, ...]] = {}
    for name, role in policy.linear_layers().items():
        bits = recipe.weight_bits.of(role)
        if bits is not None:
            wanted = {bits, *several} if name in scope else {bits}
            sorted_bits = tuple(sorted(wanted - {BFLOAT16}))
            options[name] = sorted_bits[:1] if name in idle else sorted_bits
    return options


def calibrated_layers(policy: Policy, recipe: Recipe) -> tuple[str, ...]:
    """Names of the layers to be quantized that rounding and activations read statistics of; idle ones need none."""
    idle = policy.idle_layers()
    return tuple(name for name in candidate_bits(policy, recipe) if name not in idle)


def check_allocation(policy: Policy, recipe: Recipe) -> None:
    """Refuses an allocation that no plan can fulfil, before any long work.

    Raises:
        RecipeError: The budget is smaller than the layers are at their fewest bits.
    """
    if recipe.allocation is not None:
        recipe.allocation.check(layers_to_allocate(policy, recipe))


def layers_in_scope(policy: Policy, recipe: Recipe) -> tuple[str, ...]:
    """Names of the layers that the allocation and the verification decide about, in execution order; no idle ones."""
    idle = policy.idle_layers()
    return tuple(name for name in _in_scope(policy, recipe) if name not in idle)


def _in_scope(policy: Policy, recipe: Recipe) -> tuple[str, ...]:
    """Like `layers_in_scope`, with idle layers, which use up a budget, too."""
    if recipe.allocation is None and recipe.verification is None:
        return ()
    head_only = recipe.allocation is not None and recipe.allocation.head_only
    return tuple(
        name
        for name, role in policy.linear_layers().items()
        if recipe.weight_bits.of(role) is not None and (role == "action_head" or not head_only)
    )


def layers_to_allocate(policy: Policy, recipe: Recipe) -> Layers:
    """What the allocation is told about the layers in scope, idle ones included."""
    roles, names = policy.linear_layers(), _in_scope(policy, recipe)
    candidates, idle = candidate_bits(policy, recipe), policy.idle_layers()
    bits = {name: recipe.weight_bits.of(roles[name]) for name in names}
    return Layers(
        role_bits={name: several for name, several in bits.items() if several is not None},
        idle={name: min(candidates[name]) for name in names if name in idle},
        weights={name: float_linear(policy, name).weight.numel() for name in names},
        head_blocks=policy.head_stack(),
        measure=partial(layer_resources, policy, recipe),
    )


def layer_resources(
    policy: Policy, recipe: Recipe, options: Mapping[str, tuple[int, ...]], per: Resource
) -> dict[str, dict[int, float]]:
    """What each layer needs at each of its bits.

    Args:
        policy: Gives the sizes.
        recipe: Gives groups, zero points and activations.
        options: Bits of each layer.
        per: ``"bytes"`` in a checkpoint, ``"weight bytes"`` (weight, scales and zero points), or measured ``"ms"``.
    """
    if per == "ms":
        return layer_times(policy, recipe, options)
    group_size, asymmetric = recipe.rounding.group_size, recipe.rounding.asymmetric

    def size(layer: nn.Linear, bits: int) -> float:
        shape = (layer.out_features, layer.in_features, bits)
        if per == "weight bytes":
            return float(weight_bytes(*shape, group_size=group_size, asymmetric=asymmetric))
        bias = layer.bias is not None
        return float(layer_bytes(*shape, bias=bias, group_size=group_size, asymmetric=asymmetric))

    return {name: {b: size(float_linear(policy, name), b) for b in bits} for name, bits in options.items()}


def float_linear(policy: Policy, name: str) -> nn.Linear:
    """A linear layer of a full-precision policy.

    Raises:
        InvalidInputError: The module is no linear layer.
    """
    layer = policy.get_submodule(name)
    if not isinstance(layer, nn.Linear):
        raise InvalidInputError(f"layer {name} must be an nn.Linear, got a {type(layer).__name__}. Correct its block.")
    return layer
