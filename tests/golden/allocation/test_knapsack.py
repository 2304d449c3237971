"""The knapsack against enumeration of every plan in exact fractions, and sizes against the tensors of a checkpoint."""

from __future__ import annotations

import itertools
import math
import random
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from scipy.optimize import OptimizeResult, milp

from daptq.allocation import knapsack
from daptq.allocation.knapsack import PRECISION, allocate
from daptq.allocation.resources import layer_bytes, weight_bytes
from daptq.artifacts import read_artifact
from daptq.errors import InvalidInputError
from daptq.layers.quantized_linear import QuantizedLinear
from daptq.packing.checkpoint import QUANTIZED_KIND, save_quantized
from daptq.policies.cogact_small import SmallCogACTPolicy
from daptq.rounding.nearest import round_weight

BITS = (2, 3, 4, 8, 16)
Table = dict[str, dict[int, float]]


def enumerated(costs: Table, resources: Table, budget: float) -> Fraction:
    """The least exact cost of all plans within the budget, by trying each."""
    totals = []
    for choice in itertools.product(*(sorted(costs[name]) for name in costs)):
        plan = list(zip(costs, choice, strict=True))
        if sum(Fraction(resources[name][bits]) for name, bits in plan) <= Fraction(budget):
            totals.append(sum((Fraction(costs[name][bits]) for name, bits in plan), Fraction(0)))
    return min(totals)


def problem(seed: int, layers: int, decades: float) -> tuple[Table, Table]:
    """Costs that fall about fourfold with each bit and differ by `decades` between layers; sizes of real layers."""
    draw = random.Random(seed)
    costs: Table = {}
    resources: Table = {}
    for index in range(layers):
        unit = 10 ** draw.uniform(-decades, 0)
        shape = draw.choice([(192, 192), (576, 192), (192, 768)])
        costs[f"layer{index}"] = {b: unit * draw.uniform(0.5, 1.5) * 4.0 ** (2 - b) for b in BITS[:-1]} | {16: 0.0}
        resources[f"layer{index}"] = {b: layer_bytes(*shape, b, bias=True) for b in BITS}
    return costs, resources


def budget_between(resources: Table, share: float) -> float:
    """A whole number of bytes between the smallest and the largest plan."""
    low, high = (sum(extreme(sizes.values()) for sizes in resources.values()) for extreme in (min, max))
    return math.floor(low + share * (high - low))


@pytest.mark.parametrize("decades", [0, 3, 18])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_least_cost_of_all_plans(seed: int, share: float, decades: float) -> None:
    costs, resources = problem(seed, 4, decades)
    budget = budget_between(resources, share)
    plan = allocate(costs, resources, budget)
    best = enumerated(costs, resources, budget)
    assert plan.total(resources) <= budget
    # The excess over the layers' minima is at most the total, so PRECISION bounds the relative error.
    assert Fraction(plan.total(costs)) <= best * (1 + Fraction(2 * PRECISION))


def test_enumeration_tells_a_worse_plan() -> None:
    """The greedy choice (largest gain per byte first) is what an allocator that is not exact would return."""
    costs: Table = {"a": {4: 10.0, 16: 0.0}, "b": {4: 9.0, 16: 0.0}, "c": {4: 9.0, 16: 0.0}}
    resources: Table = {"a": {4: 1.0, 16: 4.0}, "b": {4: 1.0, 16: 3.0}, "c": {4: 1.0, 16: 3.0}}
    assert enumerated(costs, resources, 7.0) == 10
    plan = allocate(costs, resources, 7.0)
    assert [layer.num_bits for layer in plan.layers] == [4, 16, 16]
    assert plan.total(costs) == 10


def test_costs_of_eighteen_decades() -> None:
    """Two layers that ruin everything at few bits, and two whose costs a tolerance of 1e-6 would not tell apart."""
    costs: Table = {
        "ruin": {2: 1e6, 16: 0.0},
        "small": {2: 3e-12, 4: 2e-12, 16: 0.0},
        "smaller": {2: 2e-12, 4: 1.5e-12, 16: 0.0},
    }
    sizes: Table = {name: {b: float(b) for b in options} for name, options in costs.items()}
    plan = allocate(costs, sizes, 16 + 2 + 16)
    assert {layer.name: layer.num_bits for layer in plan.layers} == {"ruin": 16, "small": 16, "smaller": 2}
    assert allocate(costs, sizes, 16 + 4 + 4).total(costs) == 3.5e-12


def test_a_choice_that_exceeds_the_budget_within_the_tolerance_is_solved_again(monkeypatch: pytest.MonkeyPatch) -> None:
    constraints: list[int] = []

    def counted(*arguments: Any, **settings: Any) -> Any:
        constraints.append(len(settings["constraints"]))
        return milp(*arguments, **settings)

    monkeypatch.setattr(knapsack, "milp", counted)
    costs: Table = {"a": {4: 3.0, 8: 0.0}, "b": {4: 2.0, 8: 0.0}}
    resources: Table = {"a": {4: 0.0, 8: 0.5 + 1e-11}, "b": {4: 0.0, 8: 0.5}}
    plan = allocate(costs, resources, 1.0)
    assert [layer.num_bits for layer in plan.layers] == [8, 4]
    # Both at 8 bits exceed the budget by 1e-11 of it: the solver takes that for feasible, and is asked once more.
    assert constraints[:2] == [2, 3]
    constraints.clear()
    assert allocate(costs, resources, 1.0 + 2e-11).total(costs) == 0.0
    assert constraints == [2]


def test_an_answer_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knapsack, "milp", lambda *_, **__: OptimizeResult(status=4, message="numerical trouble"))
    with pytest.raises(InvalidInputError, match="numerical trouble"):
        allocate({"a": {4: 1.0, 16: 0.0}}, {"a": {4: 1.0, 16: 4.0}}, 2.0 + 2.0)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("num_bits", BITS)
def test_bytes_are_those_of_a_checkpoint(tmp_path: Path, num_bits: int, bias: bool) -> None:
    policy = SmallCogACTPolicy.tiny()
    floats: dict[str, Any] = {name: policy.get_submodule(name) for name in policy.linear_layers()}
    chosen = {name: linear for name, linear in floats.items() if (linear.bias is not None) == bias}
    assert chosen
    layers = {}
    if num_bits != 16:
        for name, linear in chosen.items():
            rounded = round_weight(linear.weight.detach(), num_bits)
            integers, scale = rounded.integers, rounded.scale
            layers[name] = QuantizedLinear.from_integers(integers, scale, linear.bias, num_bits=num_bits)
    folder = save_quantized(policy, tmp_path / "out", layers=layers, plan={}, folding={}, recipe={}, provenance={})
    artifact = read_artifact(folder, kind=QUANTIZED_KIND)
    for name, linear in chosen.items():
        rows, columns = linear.weight.shape
        tensors = [key for key in artifact.tensor_names if key.rpartition(".")[0] == name]
        written = sum(artifact.tensor(key).nbytes for key in tensors)
        assert layer_bytes(rows, columns, num_bits, bias=bias) == written
        weights = [key for key in tensors if key.rpartition(".")[2] in ("weight", "weight_packed", "weight_scale")]
        assert weight_bytes(rows, columns, num_bits) == sum(artifact.tensor(key).nbytes for key in weights)


def test_rows_that_do_not_fill_their_last_byte() -> None:
    """5 integers of 3 bits fill 15 of 16 bits: 2 bytes and a float32 scale for each of 7 rows, shape, float32 bias."""
    assert weight_bytes(7, 5, 3) == 7 * (2 + 4)
    assert layer_bytes(7, 5, 3, bias=True) == 7 * (2 + 4) + 2 * 8 + 7 * 4
    assert layer_bytes(7, 5, 16, bias=True) == 2 * 7 * 5 + 2 * 7
