"""Gives every layer the bits that together cost the least drift within a budget of bytes, bits or milliseconds.

    min_b sum_l c_l(b_l)   subject to   sum_l r_l(b_l) <= budget,  one b_l of the layer's options for every layer

a multiple-choice knapsack, solved by SciPy's mixed-integer solver (HiGHS). The solver's tolerances are absolute, so a
problem whose costs span many orders of magnitude is solved again in units of the best total found, without the options
that cost more than this on their own; the total cost is least to within `PRECISION` of what it exceeds the sum of the
layers' own minima by. Costs are taken as if they added up, which they do not quite: see `_verification.py`. The module
does not know what a cost or a resource is.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from daptq.allocation.plan import BFLOAT16, WEIGHT_BITS, BitPlan, LayerBits
from daptq.errors import InvalidInputError, RecipeError

__all__ = ["PRECISION", "KnapsackConfig", "allocate"]

PRECISION = 1e-8

# Sums of budgets such as 0.1 ms are rounded: a total that is larger by this fraction is still the budget.
_ROUNDING = 1e-12
# What the best total, and the free budget, are to the solver, whose tolerances are 1e-6. On some problems of hundreds
# of layers it prints a line of its own, whatever these units are.
_COST_UNIT = 1e4
_RESOURCE_UNIT = 1e4
# Cost of using the whole budget beside _COST_UNIT: decides between plans of equal cost, and nothing else.
_THRIFT = 1e-5


@dataclass(frozen=True, kw_only=True)
class KnapsackConfig:
    """Settings of the budgeted allocation; exactly one budget is given, over the layers that are allocated.

    Attributes:
        bits: Numbers of bits that a layer may get, 16 for bfloat16.
        budget_mib: Size of the layers in a checkpoint, in MiB.
        budget_ms: Time of one product with every layer, in milliseconds as measured.
        budget_bits: Mean bits per weight, scales included.
    """

    method: ClassVar[str] = "knapsack"

    bits: tuple[int, ...] = (*WEIGHT_BITS, BFLOAT16)
    budget_mib: float | None = None
    budget_ms: float | None = None
    budget_bits: float | None = None

    def __post_init__(self) -> None:
        # A list is what JSON makes of a tuple.
        object.__setattr__(self, "bits", tuple(self.bits))
        allowed = (*WEIGHT_BITS, BFLOAT16)
        if not self.bits or sorted(set(self.bits)) != list(self.bits) or set(self.bits) - set(allowed):
            raise RecipeError(
                f"bits of the knapsack must be ascending numbers of {', '.join(map(str, allowed))}, got "
                f"{list(self.bits)}. Choose for example 2, 3, 4, 8, 16."
            )
        budgets = {"budget_mib": self.budget_mib, "budget_ms": self.budget_ms, "budget_bits": self.budget_bits}
        given = {label: budget for label, budget in budgets.items() if budget is not None}
        if len(given) != 1:
            raise RecipeError(
                f"budget of the knapsack must be exactly one of {', '.join(budgets)}, got {', '.join(given) or 'none'}."
                " Give one."
            )
        for label, budget in given.items():
            if not 0 < budget < math.inf:
                raise RecipeError(f"{label} must be positive and finite, got {budget}. Choose a larger budget.")


def allocate(
    costs: Mapping[str, Mapping[int, float]],
    resources: Mapping[str, Mapping[int, float]],
    budget: float,
    *,
    fixed: Mapping[str, int] | None = None,
) -> BitPlan:
    """Chooses the bits of every layer so that the total cost is least and the total resource within the budget.

    Of plans of equal cost the one that uses less is preferred; the plan does not depend on the order of the layers.

    Args:
        costs: Drift cost of each layer at each of its possible bits, not negative, for example in mm^2.
        resources: What each layer needs at the same bits, not negative, for example bytes or milliseconds.
        budget: Largest total resource, in the same unit; rounding of the sum by 1e-12 of it is allowed for.
        fixed: Layers of `costs` whose bits are decided already, and these bits. They use up budget like all others.

    Returns:
        A plan for the layers of `costs`, in their order; reasons are ``"knapsack"`` and ``"fixed"``, scores the costs.

    Raises:
        InvalidInputError: Costs and resources are not of the same layers and bits, a number is negative or not finite,
            fixed bits are none of the layer's, or the budget is smaller than the smallest possible plan.
    """
    decided = dict(fixed or {})
    _require_numbers(costs, resources, budget)
    if wrong := sorted(name for name, bits in decided.items() if bits not in costs.get(name, {})):
        raise InvalidInputError(f"fixed bits must be among those of a layer, got others for {wrong}. Give their costs.")
    # The solver breaks ties by position: a fixed order of the layers makes its answer independent of the given one.
    options = {
        name: _options(costs[name], resources[name], [decided[name]] if name in decided else list(costs[name]))
        for name in sorted(costs)
    }
    smallest = math.fsum(resources[name][bits[0]] for name, bits in options.items())
    if smallest > budget * (1 + _ROUNDING):
        raise InvalidInputError(
            f"budget must be at least {smallest:.6g}, the smallest that these layers and bits allow, got {budget:.6g}. "
            "Raise it, allow fewer bits, or fix fewer layers."
        )
    chosen = _solve(costs, resources, options, budget)
    return BitPlan(
        tuple(
            LayerBits(
                name=name,
                num_bits=chosen[name],
                reason="fixed" if name in decided else "knapsack",
                score=costs[name][chosen[name]],
            )
            for name in costs
        )
    )


def _require_numbers(
    costs: Mapping[str, Mapping[int, float]], resources: Mapping[str, Mapping[int, float]], budget: float
) -> None:
    """Refuses what has no meaning as a knapsack."""
    if not costs or set(costs) != set(resources) or any(not options for options in costs.values()):
        raise InvalidInputError(
            f"costs and resources must be of the same layers, at least one, each with an option, got {len(costs)} and "
            f"{len(resources)} layers. Give both for every layer."
        )
    if different := sorted(name for name in costs if set(costs[name]) != set(resources[name])):
        raise InvalidInputError(f"costs and resources must be of the same bits, got others for {different}. Give both.")
    for label, values in (("costs", costs), ("resources", resources)):
        bad = sorted(name for name in values if not all(0 <= value < math.inf for value in values[name].values()))
        if bad:
            raise InvalidInputError(f"{label} must be finite and not negative, got others for {bad}. Measure again.")
    if not 0 <= budget < math.inf:
        raise InvalidInputError(f"budget must be finite and not negative, got {budget}. Choose a larger budget.")


def _options(cost: Mapping[int, float], resource: Mapping[int, float], bits: list[int]) -> list[int]:
    """The bits that may be best: ascending in the resource, descending in the cost."""
    kept: list[int] = []
    for candidate in sorted(bits, key=lambda b: (resource[b], cost[b], b)):
        if not kept or cost[candidate] < cost[kept[-1]]:
            kept.append(candidate)
    return kept


def _solve(
    costs: Mapping[str, Mapping[int, float]],
    resources: Mapping[str, Mapping[int, float]],
    options: Mapping[str, list[int]],
    budget: float,
) -> dict[str, int]:
    """The best choice, in ever finer units of cost until the best total is of the order of the unit."""
    limit = budget * (1 + _ROUNDING)
    free = limit - math.fsum(resources[name][bits[0]] for name, bits in options.items())

    def extra(name: str, bits: int) -> float:
        return resources[name][bits] - resources[name][options[name][0]]

    fitting = {name: [b for b in bits if b == bits[0] or extra(name, b) <= free] for name, bits in options.items()}

    def excess(name: str, bits: int) -> float:
        return costs[name][bits] - costs[name][fitting[name][-1]]

    def fits(choice: Mapping[str, int]) -> bool:
        return math.fsum(resources[name][bits] for name, bits in choice.items()) <= limit

    chosen = {name: bits[0] for name, bits in fitting.items()}
    total, unit = math.fsum(excess(*choice) for choice in chosen.items()), math.inf
    while 0 < total < 0.5 * unit:
        unit = total
        columns = [(name, bits) for name in fitting for bits in fitting[name] if excess(name, bits) <= unit]
        cost = np.array([excess(*column) for column in columns]) / unit
        need = np.array([extra(*column) for column in columns]) / (free or 1.0)
        chosen = _choose(columns, cost, need, fits)
        total = math.fsum(excess(*choice) for choice in chosen.items())
    return chosen


def _choose(
    columns: list[tuple[str, int]],
    cost: NDArray[np.float64],
    need: NDArray[np.float64],
    fits: Callable[[Mapping[str, int]], bool],
) -> dict[str, int]:
    """One column for every layer by mixed-integer programming: least cost, in units of 1, with a need of at most 1.

    The solver accepts needs that exceed 1 within its tolerance; such a choice is forbidden, and the rest solved again.
    """
    names = list(dict.fromkeys(name for name, _ in columns))
    rows = [names.index(name) for name, _ in columns]
    one_each = csr_array((np.ones(len(columns)), (rows, np.arange(len(columns)))), shape=(len(names), len(columns)))
    constraints = [
        LinearConstraint(one_each, 1, 1),
        LinearConstraint(_RESOURCE_UNIT * need[None, :], -np.inf, _RESOURCE_UNIT),
    ]
    while True:
        with _silent_standard_output():
            result = milp(
                _COST_UNIT * cost + _THRIFT * need,
                integrality=np.ones(len(columns)),
                bounds=Bounds(0, 1),
                constraints=constraints,
                options={"mip_rel_gap": 0.0},
            )
        if result.status != 0:
            raise InvalidInputError(
                f"costs and resources must make a problem that the solver can solve, got {result.message!r}. "
                "Check for numbers of very different size."
            )
        taken = result.x > 0.5
        choice = dict(column for column, chosen in zip(columns, taken, strict=True) if chosen)
        if fits(choice):
            return choice
        constraints.append(LinearConstraint(taken[None, :].astype(np.float64), -np.inf, len(names) - 1))


@contextmanager
def _silent_standard_output() -> Iterator[None]:
    """Within the block what the process writes to its standard output, C++ included, is dropped."""
    sys.stdout.flush()
    kept, nothing = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nothing)
