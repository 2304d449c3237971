"""Chooses among the maps that a compensation method offers, by their error on states they were not fitted to.

A map can be harmful: a covariance of few states has directions without data, and statistics cannot tell noise from
scale. The module never chooses silently: every choice carries its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
        rounded_errors: Relative error without a map and with each usable one, once it is folded into weights that are
            rounded afterwards; None where that was not looked at, or where no such weight is.
        condition_numbers: Condition number of each map.
        reason: Why, in one sentence.
    """

    name: str
    affine: AffineMap
    errors: Mapping[str, float]
    rounded_errors: Mapping[str, float] | None
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
    rounded_errors: Callable[[Mapping[str, AffineMap]], Mapping[str, float] | None] | None = None,
) -> SelectedMap:
    """Chooses a map, or none: of those that are not worse than none where they are rounded, that with the least error.

    Args:
        maps: Candidates by name, the most complete last.
        quantized: (n, d) representation of the quantized policy.
        full: (n, d) representation of the full-precision policy on the same inputs.
        mean: (d,) mean in full precision.
        max_condition: A map with a larger condition number is never chosen, since it cannot be inverted safely.
        always: Take the last invertible map whatever its error, instead of the one with the least error.
        sensitivity: (d, d) weight H of squared errors, see `interface_error`; None weighs every channel alike.
        rounded_errors: Returns, by name, the relative error of each of some maps once it is folded into weights that
            are rounded afterwards, of the identity under ``"none"`` among them; or None where none are, the default.
            A map that is worse there than none is not chosen, unless that of none is 1 or more: then rounding has
            already undone the layer, and its errors do not tell maps apart.

    Raises:
        InvalidInputError: There is no candidate, or one has the reserved name ``"none"``.
    """
    if not maps or UNCHANGED in maps:
        raise InvalidInputError(f"maps must be named other than 'none', got {sorted(maps)}. Offer at least one map.")
    errors = {UNCHANGED: interface_error(quantized, full, mean, sensitivity)}
    errors |= {name: interface_error(affine(quantized), full, mean, sensitivity) for name, affine in maps.items()}
    conditions = {name: affine.condition_number for name, affine in maps.items()}
    usable = [name for name in maps if conditions[name] <= max_condition]
    offered = {UNCHANGED: AffineMap.identity(len(mean)), **{name: maps[name] for name in usable}}
    forced = always and bool(usable)
    rounded = None if forced or rounded_errors is None else rounded_errors(offered)
    # From 1 on the rounded layer is as bad as one that always answers the mean: there is nothing left to protect.
    judged = rounded if rounded is not None and rounded[UNCHANGED] < 1.0 else None
    lost = [] if judged is None else [name for name in usable if judged[name] > judged[UNCHANGED]]
    left = [name for name in offered if name not in lost]
    # Of equal errors the first counts, so nothing is changed without a gain.
    chosen = usable[-1] if forced else min(left, key=lambda name: errors[name])
    return SelectedMap(
        name=chosen,
        affine=offered[chosen],
        errors=errors,
        rounded_errors=rounded,
        condition_numbers=conditions,
        reason=_reason(chosen, errors, [name for name in maps if name not in usable], lost, always=always),
    )


def _reason(chosen: str, errors: Mapping[str, float], refused: list[str], lost: list[str], *, always: bool) -> str:
    """The choice in words."""
    listed = ", ".join(f"{name} {error:.4g}" for name, error in errors.items())
    refusal = f"; too ill-conditioned to invert: {', '.join(refused)}" if refused else ""
    refusal += f"; worse than none once folded and rounded: {', '.join(lost)}" if lost else ""
    if chosen == UNCHANGED:
        outcome = f"no map is applied, because none makes the representation better{' and stays so' if lost else ''}"
    elif always:
        outcome = f"the {chosen} map is applied, as the recipe always asks for it"
    else:
        outcome = f"the {chosen} map is applied, because it has the least error"
    return f"{outcome} (relative error: {listed}{refusal})"
