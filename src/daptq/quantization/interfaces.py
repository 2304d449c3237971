"""Which perception-to-action interfaces a recipe compensates: those of the policy's family, or its own."""

from __future__ import annotations

from daptq.errors import RecipeError
from daptq.policies.contract import Interface, Policy
from daptq.quantization.recipe import Recipe

__all__ = ["check_interfaces", "interfaces_of"]


def interfaces_of(policy: Policy, recipe: Recipe) -> tuple[Interface, ...]:
    """The interfaces of the recipe, by default those that the policy's family names, in execution order."""
    return policy.interfaces() if recipe.interfaces is None else recipe.interfaces


def check_interfaces(policy: Policy, recipe: Recipe) -> None:
    """Refuses interfaces that the policy does not have, before any long work.

    Raises:
        RecipeError: A producer or consumer is no linear layer, an observed module or a constant does not exist, or two
            interfaces are observed at one module.
    """
    layers = policy.linear_layers()
    modules = {name for name, _ in policy.named_modules()}
    parameters = {name for name, _ in policy.named_parameters()}
    interfaces = interfaces_of(policy, recipe)
    for interface in interfaces:
        unknown = [path for path in (interface.producer, interface.consumer) if path not in layers]
        unknown += [path for path in (interface.observed,) if path not in modules]
        unknown += [path for path in interface.constants if path not in parameters]
        if unknown:
            raise RecipeError(
                f"interfaces must name layers, modules and parameters of the policy, got {unknown}. "
                "See `daptq inspect` for the layers."
            )
    observed = [interface.observed for interface in interfaces]
    if twice := sorted({path for path in observed if observed.count(path) > 1}):
        raise RecipeError(f"interfaces must be observed at one module each, got {twice} twice. Leave one out.")
