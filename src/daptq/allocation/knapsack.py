"""Gives every layer the bits that together cost the least drift within a budget of bytes, bits or milliseconds.

    min_b sum_l c_l(b_l)   subject to   sum_l r_l(b_l) <= budget,  one b_l of the layer's options for every layer

a multiple-choice knapsack, solved by SciPy's mixed-integer solver (HiGHS). The solver's tolerances are absolute, so a
problem whose costs span many orders of magnitude is solved again in units of the best total found, without the options
that cost more than this on their own; the total cost is least to within `PRECISION` of what it exceeds the sum of the
layers' own minima by. Costs are taken as if they added up, which they do not quite: see `verification.py`. The module
does not know what a cost or a resource is.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from daptq.allocation.budget import Budget
from daptq.allocation.contract import AllocationMethod, Layers
from daptq.allocation.plan import BFLOAT16, WEIGHT_BITS, BitPlan, LayerBits
from daptq.errors import InvalidInputError, RecipeError
from daptq.methods import Needs

__all__ = ["ALLOCATION", "PRECISION", "KnapsackConfig", "allocate"]

PRECISION = 1e-8

# Sums of budgets such as 0.1 ms are rounded: a total that is larger by this fraction is still the budget.
_ROUNDING = 1e-12
# What the best total, and the free budget, are to the solver, whose tolerances are 1e-6. On some problems of hundreds
# of layers it prints `_STRAY_LINE`, whatever these units are.
_COST_UNIT = 1e4
_RESOURCE_UNIT = 1e4
# Cost of using the whole budget, relative to _COST_UNIT: decides between plans of equal cost, and nothing else.
_THRIFT = 1e-5
_STRAY_LINE = b"HighsMipSolverData::transformNewIntegerFeasibleSolution"
# One thread at a time puts a file in the place of the standard output.
_standard_output = threading.Lock()

_BUDGETS = ("budget_mib", "budget_ms", "budget_bits")


@dataclass(frozen=True, kw_only=True)
class KnapsackConfig(AllocationMethod):
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
        given = self._budgets()
        if len(given) != 1:
            raise RecipeError(
                f"budget of the knapsack must be exactly one of {', '.join(_BUDGETS)}, got "
                f"{', '.join(budget.label for budget in given) or 'none'}. Give one."
            )

    @property
    def needs(self) -> Needs:
        """A budget is spent by what rounding to each number of bits costs."""
        return Needs(costs=True)

    @property
    def candidate_bits(self) -> tuple[int, ...]:
        """Those of the settings."""
        return self.bits

    @property
    def budget(self) -> Budget:
        """The one that is given."""
        return self._budgets()[0]

    def allocate(
        self, layers: Layers, scores: Mapping[str, Mapping[int, float]], keep: Mapping[str, str]
    ) -> dict[str, LayerBits]:
        """Spends the budget, see the function `allocate`; idle layers and layers to keep use it up, too."""
        idle = dict.fromkeys((*self.bits, *layers.idle.values(), BFLOAT16), 0.0)
        scored = {name: scores.get(name, idle) for name in layers.role_bits}
        options = {
            name: (BFLOAT16,) if name in keep else tuple(bits for bits in several if bits in scored[name])
            for name, several in layers.options(self.bits).items()
        }
        resources = layers.measure(options, self.budget.resource)
        costs = {name: {bits: scored[name][bits] for bits in several} for name, several in options.items()}
        plan = allocate(costs, resources, self.budget.amount(layers.total_weights))
        return {layer.name: replace(layer, reason=keep.get(layer.name, layer.reason)) for layer in plan.layers}

    def _budgets(self) -> tuple[Budget, ...]:
        """The budgets that are given."""
        values = {label: getattr(self, label) for label in _BUDGETS}
        return tuple(Budget(label, value) for label, value in values.items() if value is not None)


ALLOCATION = KnapsackConfig


def allocate(
    costs: Mapping[str, Mapping[int, float]],
    resources: Mapping[str, Mapping[int, float]],
    budget: float,
) -> BitPlan:
    """Chooses the bits of every layer so that the total cost is least and the total resource within the budget.

    Of plans of equal cost the one that uses less is preferred; the plan does not depend on the order of the layers.

    Args:
        costs: Drift cost of each layer at each of its possible bits, not negative, for example in mm^2.
        resources: What each layer needs at the same bits, not negative, for example bytes or milliseconds.
        budget: Largest total resource, in the same unit; rounding of the sum by 1e-12 of it is allowed for.

    Returns:
        A plan for the layers of `costs`, in their order; the reason is ``"knapsack"``, scores are the costs.

    Raises:
        InvalidInputError: Costs and resources are not of the same layers and bits, a number is negative or not finite,
            or the budget is smaller than the smallest possible plan.
    """
    _require_numbers(costs, resources, budget)
    # The solver breaks ties by position: a fixed order of the layers makes its answer independent of the given one.
    options = {name: _options(costs[name], resources[name]) for name in sorted(costs)}
    smallest = math.fsum(resources[name][bits[0]] for name, bits in options.items())
    if smallest > budget * (1 + _ROUNDING):
        raise InvalidInputError(
            f"budget must be at least {smallest:.6g}, the smallest that these layers and bits allow, got {budget:.6g}. "
            "Raise it, or allow fewer bits."
        )
    chosen = _solve(costs, resources, options, budget)
    return BitPlan(
        tuple(
            LayerBits(name=name, num_bits=chosen[name], reason="knapsack", score=costs[name][chosen[name]])
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


def _options(cost: Mapping[int, float], resource: Mapping[int, float]) -> list[int]:
    """The bits that may be best: ascending in the resource, descending in the cost."""
    kept: list[int] = []
    for candidate in sorted(cost, key=lambda b: (resource[b], cost[b], b)):
        if not kept or cost[candidate] < cost[kept[-1]]:
            kept.append(candidate)
    return kept


@dataclass(frozen=True, kw_only=True)
class _Column:
    """One option of one layer.

    Attributes:
        name: The layer.
        bits: Its bits.
        cost: What it costs beyond the layer's cheapest option that fits.
        need: What it needs beyond the layer's smallest option, in units of the budget that these leave.
    """

    name: str
    bits: int
    cost: float
    need: float


def _solve(
    costs: Mapping[str, Mapping[int, float]],
    resources: Mapping[str, Mapping[int, float]],
    options: Mapping[str, list[int]],
    budget: float,
) -> dict[str, int]:
    """The best choice of one option for each layer.

    The solver's tolerance is absolute. It is therefore called again, in units of the best total so far and without the
    options that cost more than that, until a total is at least half of its unit. The first unit is the total of the
    smallest options.
    """
    limit = budget * (1 + _ROUNDING)
    columns = _columns(costs, resources, options, limit)
    chosen = [next(column for column in columns if column.name == name) for name in options]
    total, unit = math.fsum(column.cost for column in chosen), math.inf
    while 0 < total < 0.5 * unit:
        unit = total
        affordable = [column for column in columns if column.cost <= unit]
        chosen = _choose(affordable, unit, resources, limit)
        total = math.fsum(column.cost for column in chosen)
    return {column.name: column.bits for column in chosen}


def _columns(
    costs: Mapping[str, Mapping[int, float]],
    resources: Mapping[str, Mapping[int, float]],
    options: Mapping[str, list[int]],
    limit: float,
) -> list[_Column]:
    """The options that fit into the budget with the smallest of all other layers, layer by layer, smallest first."""
    free = limit - math.fsum(resources[name][bits[0]] for name, bits in options.items())
    columns: list[_Column] = []
    for name, bits in options.items():
        cost, resource, smallest = costs[name], resources[name], resources[name][bits[0]]
        fitting = [b for b in bits if b == bits[0] or resource[b] - smallest <= free]
        columns += [
            _Column(name=name, bits=b, cost=cost[b] - cost[fitting[-1]], need=(resource[b] - smallest) / (free or 1.0))
            for b in fitting
        ]
    return columns


def _choose(
    columns: list[_Column], unit: float, resources: Mapping[str, Mapping[int, float]], limit: float
) -> list[_Column]:
    """One column for every layer by mixed-integer programming: least cost in units of `unit`, with a need of at most 1.

    The solver accepts needs that exceed 1 within its tolerance; such a choice is forbidden, and the rest solved again.
    """
    cost = np.array([column.cost for column in columns]) / unit
    need = np.array([column.need for column in columns])
    names = list(dict.fromkeys(column.name for column in columns))
    rows = [names.index(column.name) for column in columns]
    one_each = csr_array((np.ones(len(columns)), (rows, np.arange(len(columns)))), shape=(len(names), len(columns)))
    constraints = [
        LinearConstraint(one_each, 1, 1),
        LinearConstraint(_RESOURCE_UNIT * need[None, :], -np.inf, _RESOURCE_UNIT),
    ]
    while True:
        with _without_the_solvers_line():
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
        choice = [column for column, chosen in zip(columns, taken, strict=True) if chosen]
        if math.fsum(resources[column.name][column.bits] for column in choice) <= limit:
            return choice
        constraints.append(LinearConstraint(taken[None, :].astype(np.float64), -np.inf, len(names) - 1))


@contextmanager
def _without_the_solvers_line() -> Iterator[None]:
    """Within the block the solver's stray line is kept from the process's standard output.

    HiGHS prints it from C++ whatever its options: SciPy's ``disp`` is off already. Everything else that is
    written meanwhile, by other threads too, is written when the block ends.
    """
    with _standard_output, tempfile.TemporaryFile() as written:
        sys.stdout.flush()
        kept = os.dup(1)
        os.dup2(written.fileno(), 1)
        try:
            yield
        finally:
            sys.stdout.flush()
            os.dup2(kept, 1)
            written.seek(0)
            with os.fdopen(kept, "wb") as output:
                output.writelines(line for line in written if not line.startswith(_STRAY_LINE))
