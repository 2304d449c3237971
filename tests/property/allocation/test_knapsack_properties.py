"""The knapsack's laws: within the budget, below every random plan, and indifferent to order and unit."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from daptq.allocation.knapsack import PRECISION, allocate
from daptq.allocation.plan import BitPlan, LayerBits
from daptq.allocation.verification import promote

BITS = (2, 3, 4, 8, 16)
Table = dict[str, dict[int, float]]
Problem = tuple[Table, Table]

COSTS = st.one_of(st.just(0.0), st.floats(-12, 6).map(lambda exponent: 10.0**exponent))
SIZES = st.one_of(st.integers(1, 10**9).map(float), st.floats(1e-3, 1e3))


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Layers with any costs, of any sizes, at some of the bits."""
    costs: Table = {}
    resources: Table = {}
    for index in range(draw(st.integers(1, 8))):
        bits = draw(st.sets(st.sampled_from(BITS), min_size=1))
        costs[f"layer{index}"] = {b: draw(COSTS) for b in bits}
        resources[f"layer{index}"] = {b: draw(SIZES) for b in bits}
    return costs, resources


def a_plan(data: st.DataObject, costs: Table) -> BitPlan:
    """Any choice of bits."""
    return BitPlan(
        tuple(
            LayerBits(name=name, num_bits=data.draw(st.sampled_from(sorted(costs[name]))), reason="any")
            for name in costs
        )
    )


def no_worse(costs: Table, found: BitPlan, other: BitPlan) -> bool:
    """Whether the first plan's cost is at most the second's, up to what the solver promises."""
    return found.total(costs) <= other.total(costs) * (1 + 2 * PRECISION)


@given(problems(), st.data())
def test_no_plan_within_the_budget_is_better(problem: Problem, data: st.DataObject) -> None:
    costs, resources = problem
    other = a_plan(data, costs)
    budget = other.total(resources) * data.draw(st.floats(1, 1.5))
    found = allocate(costs, resources, budget)
    assert found.total(resources) <= budget * (1 + 1e-12)
    assert no_worse(costs, found, other)
    assert all(layer.score == costs[layer.name][layer.num_bits] for layer in found.layers)


@given(problems(), st.data())
def test_a_larger_budget_costs_no_more(problem: Problem, data: st.DataObject) -> None:
    costs, resources = problem
    budget = a_plan(data, costs).total(resources)
    larger = budget * data.draw(st.floats(1, 3))
    assert no_worse(costs, allocate(costs, resources, larger), allocate(costs, resources, budget))


@given(problems(), st.data())
def test_the_order_of_layers_and_bits_does_not_matter(problem: Problem, data: st.DataObject) -> None:
    costs, resources = problem
    budget = a_plan(data, costs).total(resources)
    order = data.draw(st.permutations(list(costs)))
    shuffled = {name: dict(reversed(costs[name].items())) for name in order}
    first, second = allocate(costs, resources, budget), allocate(shuffled, resources, budget)
    assert set(second.layers) == set(first.layers)
    assert [layer.name for layer in second.layers] == order


@given(problems(), st.data(), st.floats(-6, 6))
def test_the_unit_of_the_costs_does_not_matter(problem: Problem, data: st.DataObject, exponent: float) -> None:
    costs, resources = problem
    budget = a_plan(data, costs).total(resources)
    scaled = {name: {b: cost * 10.0**exponent for b, cost in options.items()} for name, options in costs.items()}
    first, second = allocate(costs, resources, budget), allocate(scaled, resources, budget)
    assert no_worse(costs, first, second)
    assert no_worse(costs, second, first)


@given(problems(), st.data())
def test_no_layer_gets_more_than_it_gains_from(problem: Problem, data: st.DataObject) -> None:
    """Of options that cost the same, a layer has one that needs least."""
    costs, resources = problem
    found = allocate(costs, resources, a_plan(data, costs).total(resources))
    for layer in found.layers:
        cost, need = costs[layer.name], resources[layer.name]
        assert need[layer.num_bits] == min(need[b] for b in cost if cost[b] <= cost[layer.num_bits])


@given(problems(), st.data())
def test_verification_only_adds_bits_and_says_the_truth(problem: Problem, data: st.DataObject) -> None:
    """Against any measurement whatsoever, additive or not."""
    costs, resources = problem
    start = a_plan(data, costs)
    budget = data.draw(st.one_of(st.none(), st.floats(1, 2).map(lambda share: share * start.total(resources))))
    gate, rounds = data.draw(st.floats(0, 10)), data.draw(st.sampled_from([0, 2, 40]))
    seed = data.draw(st.integers(0, 10**6))
    seen: dict[tuple[int, ...], float] = {}

    def measure(plan: BitPlan) -> float:
        bits = tuple(layer.num_bits for layer in plan.layers)
        seen[bits] = float(hash((seed, bits)) % 1000) / 50
        return seen[bits]

    result = promote(start, costs, resources, measure, gate=gate, budget=budget, max_rounds=rounds)
    assert all(
        after.num_bits >= before.num_bits for before, after in zip(start.layers, result.plan.layers, strict=True)
    )
    assert result.measured == seen[tuple(layer.num_bits for layer in result.plan.layers)]
    assert result.holds == (result.measured <= gate)
    if budget is not None:
        assert result.plan.total(resources) <= budget * (1 + 2e-12)
    elif not result.holds and rounds == 40:
        assert all(layer.num_bits == max(costs[layer.name]) for layer in result.plan.layers)
