"""Which perception-to-action interfaces a recipe compensates: those of the policy's family, or its own."""

from __future__ import annotations

from daptq.errors import RecipeError
from daptq.interfaces.contract import Interface
from daptq.policies.contract import Policy
from daptq.quantization.recipe import Recipe

__all__ = ["check_interfaces", "interfaces_of"]


def interfaces_of(policy: Policy, recipe: Recipe) -> tuple[Interface, ...]:
    """The interfaces that the recipe compensates, by default all that the family names, in execution order."""
    if recipe.compensation is None:
        return ()
    return policy.interfaces() if recipe.interfaces is None else recipe.interfaces


def check_interfaces(policy: Policy, recipe: Recipe) -> None:
    """Refuses interfaces that the policy does not have, before any long work.

    Raises:
        RecipeError: A fold changes what is no linear layer or parameter, a tap is at no module, or two interfaces have
            one name; or there is no interface and the recipe compensates.
    """
    layers = policy.linear_layers()
    modules = {name for name, _ in policy.named_modules()}
    parameters = {name for name, _ in policy.named_parameters()}
    interfaces = interfaces_of(policy, recipe)
    if recipe.compensation is not None and not interfaces:
        raise RecipeError(
            f"policy {policy.name} must have a perception-to-action interface to be compensated, got none. Choose a "
            "recipe without compensation."
        )
    for interface in interfaces:
        unknown = [] if interface.tap.module in modules else [interface.tap.module]
        for fold in interface.folds:
            unknown += [path for path in fold.layers if path not in layers]
            unknown += [path for path in fold.parameters if path not in parameters]
        if unknown:
            raise RecipeError(
                f"interfaces must name layers, modules and parameters of the policy, got {unknown}. "
                "See `daptq inspect` for the layers."
            )
    names = [interface.name for interface in interfaces]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise RecipeError(f"interfaces must have a name each, got {twice} twice. Leave one out.")
