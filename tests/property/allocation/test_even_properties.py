"""The even spread never exceeds its budget, and is refused exactly when no plan keeps it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daptq.allocation.even import EvenConfig, allocate
from daptq.errors import InvalidInputError, RecipeError

# Whole numbers of bytes, as in files; a layer's bytes grow with its bits.
OPTIONS = st.integers(1, 10_000).flatmap(
    lambda weights: st.sets(st.sampled_from((2, 3, 4, 8, 16)), min_size=1).map(
        lambda bits: {one: float(weights * one) for one in sorted(bits)}
    )
)
RESOURCES = st.lists(OPTIONS, min_size=1, max_size=20).map(
    lambda layers: {f"layer.{index}": options for index, options in enumerate(layers)}
)


@given(RESOURCES, st.floats(0.0, 1.5))
def test_the_budget_is_kept_or_refused(resources: dict[str, dict[int, float]], part: float) -> None:
    smallest = math.fsum(min(options.values()) for options in resources.values())
    largest = math.fsum(max(options.values()) for options in resources.values())
    budget = math.floor(part * largest)
    if budget < smallest:
        with pytest.raises(InvalidInputError, match="budget must be at least"):
            allocate(resources, budget)
        return
    plan = allocate(resources, budget)
    assert [layer.name for layer in plan.layers] == list(resources)
    spent = math.fsum(resources[layer.name][layer.num_bits] for layer in plan.layers)
    assert smallest <= spent <= budget


@given(RESOURCES)
def test_the_largest_budget_gives_every_layer_its_largest_bits(resources: dict[str, dict[int, float]]) -> None:
    largest = math.fsum(max(options.values()) for options in resources.values())
    plan = allocate(resources, largest * (1 + 1e-12))
    assert all(layer.num_bits == max(resources[layer.name]) for layer in plan.layers)


@pytest.mark.parametrize("budget", [0.0, -1.0, math.inf, math.nan])
def test_budgets_out_of_range_are_refused(budget: float) -> None:
    with pytest.raises(RecipeError, match="budget_bits must be positive and finite"):
        EvenConfig(budget_bits=budget)
