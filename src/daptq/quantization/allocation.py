"""The allocation stage: one decision for every linear layer of a policy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Literal

from torch import nn

from daptq.allocation import even, knapsack, top_fraction
from daptq.allocation.even import EvenConfig
from daptq.allocation.knapsack import KnapsackConfig
from daptq.allocation.plan import BFLOAT16, WEIGHT_BITS, BitPlan, LayerBits
from daptq.allocation.resources import layer_bytes, weight_bytes
from daptq.allocation.top_fraction import TopFractionConfig
from daptq.errors import InvalidInputError, RecipeError
from daptq.policies.contract import Policy
from daptq.quantization.layer_times import layer_times
from daptq.quantization.recipe import Recipe

__all__ = [
    "bit_plan",
    "budget_of",
    "calibrated_layers",
    "candidate_bits",
    "check_budget",
    "float_linear",
    "layer_resources",
    "layers_in_scope",
]

Resource = Literal["bytes", "weight bytes", "ms"]

ALL_BITS: tuple[int, ...] = (*WEIGHT_BITS, BFLOAT16)


def bit_plan(
    policy: Policy, recipe: Recipe, *, scores: Mapping[str, Mapping[int, float]], keep: Mapping[str, str]
) -> BitPlan:
    """The bits of every linear layer, in execution order.

    Args:
        policy: Says which layers there are, with their roles and sizes.
        recipe: Bits by role, and the allocation.
        scores: What each layer in scope scores at each of its bits; empty where nothing is allocated yet.
        keep: Reason by name of layers that stay bfloat16 whatever their score.
    """
    allocated: dict[str, LayerBits] = {}
    config = recipe.allocation
    if isinstance(config, TopFractionConfig) and scores:
        allocated = {layer.name: layer for layer in _top_fraction(policy, recipe, config, scores, keep).layers}
    elif isinstance(config, KnapsackConfig) and scores:
        allocated = {layer.name: layer for layer in _knapsack(policy, recipe, config, scores, keep).layers}
    elif isinstance(config, EvenConfig):
        sizes = layer_resources(policy, recipe, _budgeted(policy, recipe, ALL_BITS), per="weight bytes")
        weights = sum(float_linear(policy, name).weight.numel() for name in sizes)
        allocated = {layer.name: layer for layer in even.allocate(sizes, config.budget_bits * weights / 8).layers}

    candidates, idle = candidate_bits(policy, recipe), policy.idle_layers()

    def decide(name: str, bits: int | None) -> LayerBits:
        ranked = allocated.get(name)
        score = None if ranked is None else ranked.score
        if bits is None:
            return LayerBits(name=name, num_bits=BFLOAT16, reason="role")
        if name in idle and name not in keep:
            return LayerBits(name=name, num_bits=min(candidates[name]), reason="idle")
        if ranked is not None and (ranked.kept or not isinstance(config, TopFractionConfig)):
            return ranked
        if name in keep:
            return LayerBits(name=name, num_bits=BFLOAT16, reason=keep[name], score=score)
        return LayerBits(name=name, num_bits=bits, reason="role" if ranked is None else ranked.reason, score=score)

    layers = policy.linear_layers()
    return BitPlan(tuple(decide(name, recipe.weight_bits.of(role)) for name, role in layers.items()))


def candidate_bits(policy: Policy, recipe: Recipe) -> dict[str, tuple[int, ...]]:
    """The bits, bfloat16 left out, that each layer to be quantized may get, in execution order; an idle one the fewest.

    A chunk does not depend on an idle layer: it needs no score to be rounded as far as the recipe rounds any.
    """
    scope, idle = set(_in_scope(policy, recipe)), policy.idle_layers()
    config = recipe.allocation
    several: tuple[int, ...] = ()
    if isinstance(config, KnapsackConfig):
        several = config.bits
    elif isinstance(config, EvenConfig) or recipe.verification is not None:
        several = ALL_BITS
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


def check_budget(policy: Policy, recipe: Recipe) -> None:
    """Refuses a budget that no plan can keep, before any long work. A budget in milliseconds is not measured here.

    Raises:
        RecipeError: The budget is smaller than the layers are at their fewest bits.
    """
    config = recipe.allocation
    if isinstance(config, EvenConfig):
        given, options = {"budget_bits": config.budget_bits}, _budgeted(policy, recipe, ALL_BITS)
        per, budget = budget_of(policy, KnapsackConfig(budget_bits=config.budget_bits), options)
    elif isinstance(config, KnapsackConfig) and config.budget_ms is None:
        given = {"budget_bits": config.budget_bits or 0.0, "budget_mib": config.budget_mib or 0.0}
        options = _budgeted(policy, recipe, config.bits)
        per, budget = budget_of(policy, config, options)
    else:
        return
    smallest = math.fsum(min(sizes.values()) for sizes in layer_resources(policy, recipe, options, per=per).values())
    if smallest > budget:
        label, value = next((label, value) for label, value in given.items() if value)
        least = value * smallest / budget
        raise RecipeError(
            f"{label} must be at least {least:.4g} for this policy, got {value:.4g}. Raise it, or allow fewer bits."
        )


def layers_in_scope(policy: Policy, recipe: Recipe) -> tuple[str, ...]:
    """Names of the layers that the allocation and the verification decide about, in execution order; no idle ones."""
    idle = policy.idle_layers()
    return tuple(name for name in _in_scope(policy, recipe) if name not in idle)


def _in_scope(policy: Policy, recipe: Recipe) -> tuple[str, ...]:
    """Like `layers_in_scope`, with idle layers, which use up a budget, too."""
    if recipe.allocation is None and recipe.verification is None:
        return ()
    head_only = isinstance(recipe.allocation, TopFractionConfig) and recipe.allocation.scope == "action_head"
    return tuple(
        name
        for name, role in policy.linear_layers().items()
        if recipe.weight_bits.of(role) is not None and (role == "action_head" or not head_only)
    )


def _budgeted(policy: Policy, recipe: Recipe, bits: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Bits of every layer that a budget limits: `bits`, of idle layers the fewest that they may get."""
    candidates, idle = candidate_bits(policy, recipe), policy.idle_layers()
    return {name: candidates[name] if name in idle else bits for name in _in_scope(policy, recipe)}


def layer_resources(
    policy: Policy, recipe: Recipe, options: Mapping[str, tuple[int, ...]], *, per: Resource
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


def budget_of(policy: Policy, config: KnapsackConfig, names: Iterable[str]) -> tuple[Resource, float]:
    """The resource that a budget limits, and its amount for the layers `names`."""
    if config.budget_ms is not None:
        return "ms", config.budget_ms
    if config.budget_mib is not None:
        return "bytes", config.budget_mib * 2**20
    assert config.budget_bits is not None
    weights = sum(float_linear(policy, name).weight.numel() for name in names)
    return "weight bytes", config.budget_bits * weights / 8


def float_linear(policy: Policy, name: str) -> nn.Linear:
    """A linear layer of a full-precision policy.

    Raises:
        InvalidInputError: The module is no linear layer.
    """
    layer = policy.get_submodule(name)
    if not isinstance(layer, nn.Linear):
        raise InvalidInputError(f"layer {name} must be an nn.Linear, got a {type(layer).__name__}. Correct its block.")
    return layer


def _top_fraction(
    policy: Policy,
    recipe: Recipe,
    config: TopFractionConfig,
    scores: Mapping[str, Mapping[int, float]],
    keep: Mapping[str, str],
) -> BitPlan:
    """Ranks the layers by their score at the bits of their role."""
    roles = policy.linear_layers()
    bits = {name: recipe.weight_bits.of(roles[name]) for name in scores}
    ranked = {name: by_bits[bits[name] or BFLOAT16] for name, by_bits in scores.items()}
    reasons = {**dict.fromkeys(_last_blocks(policy, config, ranked), "last block"), **keep}
    return top_fraction.allocate(
        ranked,
        config.fraction,
        keep={name: reason for name, reason in reasons.items() if name in ranked},
        by=config.by,
        sizes={name: float_linear(policy, name).weight.numel() for name in ranked},
    )


def _knapsack(
    policy: Policy,
    recipe: Recipe,
    config: KnapsackConfig,
    scores: Mapping[str, Mapping[int, float]],
    keep: Mapping[str, str],
) -> BitPlan:
    """Spends the budget on the layers in scope; layers to keep use it up, too."""
    options = {
        name: (BFLOAT16,) if name in keep else tuple(b for b in config.bits if b in by_bits)
        for name, by_bits in scores.items()
    }
    budgeted = _budgeted(policy, recipe, config.bits)
    idle = {name: (BFLOAT16,) if name in keep else budgeted[name] for name in policy.idle_layers() if name in budgeted}
    per, budget = budget_of(policy, config, options | idle)
    resources = layer_resources(policy, recipe, options | idle, per=per)
    costs = {name: {b: scores[name][b] for b in bits} for name, bits in options.items()}
    costs |= {name: dict.fromkeys(bits, 0.0) for name, bits in idle.items()}
    plan = knapsack.allocate(costs, resources, budget)
    return BitPlan(tuple(replace(layer, reason=keep.get(layer.name, layer.reason)) for layer in plan.layers))


def _last_blocks(policy: Policy, config: TopFractionConfig, scores: Iterable[str]) -> list[str]:
    """Layers of the last blocks of the action head."""
    blocks = policy.head_stack()
    kept = blocks[max(len(blocks) - config.keep_last_blocks, 0) :]
    return [name for name in scores if any(name == block or name.startswith(f"{block}.") for block in kept)]
