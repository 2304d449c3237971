"""Whether a recipe's drift model reads the actions of a policy, asked before any long work."""

from __future__ import annotations

from daptq.action_space import ActionSpace
from daptq.catalog import DRIFT_MODELS
from daptq.drift.contract import DriftModel
from daptq.errors import RecipeError
from daptq.policies.contract import Policy
from daptq.quantization.recipe import Recipe

__all__ = ["check_drift_model", "models_that_read"]


def check_drift_model(policy: Policy, recipe: Recipe) -> None:
    """Refuses a drift model that does not read the policy's actions; a recipe without data asks no drift model.

    Raises:
        RecipeError: It does not; the message names the models that do.
    """
    reason = recipe.drift.refuses(policy.action_space) if recipe.needs.data else None
    if reason is not None:
        raise RecipeError(
            f"drift model {recipe.drift.method} must read the actions of policy {policy.name}, got a refusal: {reason}"
            f". Choose {' or '.join(models_that_read(policy.action_space))}."
        )


def models_that_read(space: ActionSpace) -> tuple[str, ...]:
    """Names of the drift models that read a space with their default settings."""
    defaults: dict[str, DriftModel] = {name: DRIFT_MODELS.provided(name)() for name in DRIFT_MODELS.names()}
    return tuple(name for name, model in defaults.items() if model.refuses(space) is None)
