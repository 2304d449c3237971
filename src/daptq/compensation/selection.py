"""Chooses among the maps that a compensation method offers, by their error on states they were not fitted to.

A map can be harmful: a covariance of few states has directions without data, and statistics cannot tell noise from
scale. The module never chooses silently: every choice carries its reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from daptq.compensation.error import interface_error
from daptq.errors import InvalidInputError
from daptq.interfaces.affine import AffineMap

__all__ = ["UNCHANGED", "SelectedMap", "select_map"]

UNCHANGED = "none"


@dataclass(frozen=True, kw_only=True, eq=False)
class SelectedMap:
    """A choice among maps.

    Attributes:
        name: Name of the chosen map, ``"none"`` for the identity.
        affine: The chosen map.
        errors: Relative error of the representation (`interface_error`) without a map and with each map.
        condition_numbers: Condition number of each map.
        reason: Why, in one sentence.
    """

    name: str
    affine: AffineMap
    errors: Mapping[str, float]
    condition_numbers: Mapping[str, float]
    reason: str


def select_map(
    maps: Mapping[str, AffineMap],
    quantized: Float[Tensor, "n d"],
    full: Float[Tensor, "n d"],
    mean: Float[Tensor, " d"],
    *,
    max_condition: float,
    always: bool,
    sensitivity: Float[Tensor, "d d"] | None = None,
) -> SelectedMap:
    """Chooses a map, or none.

    Args:
        maps: Candidates by name, the most complete last.
        quantized: (n, d) representation of the quantized policy.
        full: (n, d) representation of the full-precision policy on the same inputs.
        mean: (d,) mean in full precision.
        max_condition: A map with a larger condition number is never chosen, since it cannot be inverted safely.
        always: Take the last invertible map whatever its error, instead of the one with the least error.
        sensitivity: (d, d) weight H of squared errors, see `interface_error`; None weighs every channel alike.

    Raises:
        InvalidInputError: There is no candidate, or one has the reserved name ``"none"``.
    """
    if not maps or UNCHANGED in maps:
        raise InvalidInputError(f"maps must be named other than 'none', got {sorted(maps)}. Offer at least one map.")
    errors = {UNCHANGED: interface_error(quantized, full, mean, sensitivity)}
    errors |= {name: interface_error(affine(quantized), full, mean, sensitivity) for name, affine in maps.items()}
    conditions = {name: affine.condition_number for name, affine in maps.items()}
    usable = [name for name in maps if conditions[name] <= max_condition]
    # Of equal errors the first counts, so nothing is changed without a gain.
    best = min([UNCHANGED, *usable], key=lambda name: errors[name])
    chosen = usable[-1] if always and usable else best
    affine = maps[chosen] if chosen in maps else AffineMap.identity(len(mean))
    return SelectedMap(
        name=chosen,
        affine=affine,
        errors=errors,
        condition_numbers=conditions,
        reason=_reason(chosen, errors, [name for name in maps if name not in usable], always=always),
    )


def _reason(chosen: str, errors: Mapping[str, float], refused: list[str], *, always: bool) -> str:
    """The choice in words."""
    listed = ", ".join(f"{name} {error:.4g}" for name, error in errors.items())
    refusal = f"; too ill-conditioned to invert: {', '.join(refused)}" if refused else ""
    if chosen == UNCHANGED:
        outcome = "no map is applied, because none makes the representation better"
    elif always:
        outcome = f"the {chosen} map is applied, as the recipe always asks for it"
    else:
        outcome = f"the {chosen} map is applied, because it has the least error"
    return f"{outcome} (relative error: {listed}{refusal})"
