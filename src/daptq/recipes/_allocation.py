"""The allocation stage: one decision for every linear layer of a policy."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from daptq.allocation._plan import BFLOAT16, BitPlan, LayerBits
from daptq.allocation.top_fraction import TopFractionConfig, allocate
from daptq.errors import InvalidInputError
from daptq.policies._base import Policy
from daptq.recipes._recipe import Recipe

__all__ = ["bit_plan", "float_linear", "layers_in_scope"]


def bit_plan(policy: Policy, recipe: Recipe, *, scores: Mapping[str, float], keep: Mapping[str, str]) -> BitPlan:
    """The bits of every linear layer, in execution order.

    Args:
        policy: Says which layers there are, with their roles and sizes.
        recipe: Bits by role, and the allocation.
        scores: Sensitivity of the layers in scope; empty where nothing is allocated.
        keep: Reason by name of layers that stay bfloat16 whatever their score.
    """
    allocated: dict[str, LayerBits] = {}
    if recipe.allocation is not None and scores:
        reasons = {**dict.fromkeys(_last_blocks(policy, recipe.allocation, scores), "last block"), **keep}
        plan = allocate(
            scores,
            recipe.allocation.fraction,
            keep={name: reason for name, reason in reasons.items() if name in scores},
            by=recipe.allocation.by,
            sizes={name: float_linear(policy, name).weight.numel() for name in scores},
        )
        allocated = {layer.name: layer for layer in plan.layers}

    def decide(name: str, bits: int | None) -> LayerBits:
        ranked = allocated.get(name)
        score = None if ranked is None else ranked.score
        if bits is None:
            return LayerBits(name=name, num_bits=BFLOAT16, reason="role")
        if ranked is not None and ranked.kept:
            return ranked
        if name in keep:
            return LayerBits(name=name, num_bits=BFLOAT16, reason=keep[name], score=score)
        return LayerBits(name=name, num_bits=bits, reason="role" if ranked is None else ranked.reason, score=score)

    layers = policy.linear_layers()
    return BitPlan(tuple(decide(name, recipe.weight_bits.of(role)) for name, role in layers.items()))


def layers_in_scope(policy: Policy, recipe: Recipe) -> tuple[str, ...]:
    """Names of the layers that the allocation ranks, in execution order."""
    if recipe.allocation is None:
        return ()
    return tuple(
        name
        for name, role in policy.linear_layers().items()
        if recipe.weight_bits.of(role) is not None and (recipe.allocation.scope == "all" or role == "action_head")
    )


def float_linear(policy: Policy, name: str) -> nn.Linear:
    """A linear layer of a full-precision policy.

    Raises:
        InvalidInputError: The module is no linear layer.
    """
    layer = policy.get_submodule(name)
    if not isinstance(layer, nn.Linear):
        raise InvalidInputError(f"layer {name} must be an nn.Linear, got a {type(layer).__name__}. Correct its block.")
    return layer


def _last_blocks(policy: Policy, config: TopFractionConfig, scores: Mapping[str, float]) -> list[str]:
    """Layers of the last blocks of the action head."""
    blocks = policy.action_head_blocks()
    kept = blocks[max(len(blocks) - config.keep_last_blocks, 0) :]
    return [name for name in scores if any(name == block or name.startswith(f"{block}.") for block in kept)]
