"""Whether a recipe's drift model reads the actions of a policy, asked before any long work."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any, cast

from daptq.action_space import ActionSpace
from daptq.catalog import DRIFT_MODELS
from daptq.drift.contract import DriftModel
from daptq.errors import RecipeError
from daptq.policies.contract import Policy
from daptq.quantization.recipe import Recipe, method_named

__all__ = ["check_drift_model", "models_that_read"]


def check_drift_model(policy: Policy, recipe: Recipe) -> None:
    """Refuses a drift model that does not read the policy's actions; a recipe without data asks no drift model.

    Raises:
        RecipeError: It does not; the message names the models that do.
    """
    reason = recipe.drift_model.refuses(policy.action_space) if recipe.needs.data else None
    if reason is not None:
        others = models_that_read(policy.action_space)
        advice = f"Choose {' or '.join(others)}." if others else "No installed one does without settings."
        raise RecipeError(
            f"drift model {recipe.drift_model.method} must read the actions of policy {policy.name}, got a refusal: "
            f"{reason}. {advice}"
        )


def models_that_read(space: ActionSpace) -> tuple[str, ...]:
    """Names of the drift models that read a space with their default settings, sorted.

    One that must be given a setting is left out, since it is not known what that would be.
    """

    def reads(name: str, _: Any) -> bool:
        kind: Any = method_named(DRIFT_MODELS, name)
        if any(setting.default is MISSING and setting.default_factory is MISSING for setting in fields(kind)):
            return False
        return cast("DriftModel", kind()).refuses(space) is None

    return tuple(sorted(name for name, read in DRIFT_MODELS.usable(reads).items() if read))
