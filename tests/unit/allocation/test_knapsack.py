"""Settings and refusals of the knapsack, joint verification on synthetic measurements, and measured layer times."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from typing import Any

import pytest
import scipy.optimize

from daptq.allocation import knapsack
from daptq.allocation.knapsack import KnapsackConfig, allocate
from daptq.allocation.plan import BitPlan, LayerBits
from daptq.allocation.verification import Verification, promote
from daptq.errors import InvalidInputError, RecipeError
from daptq.layers import timing
from daptq.layers.timing import measure_layer_times

Table = dict[str, dict[int, float]]

COSTS: Table = {"a": {4: 2.0, 8: 1.0, 16: 0.0}, "b": {4: 3.0, 8: 1.0, 16: 0.0}}
SIZES: Table = {"a": {4: 4.0, 8: 8.0, 16: 16.0}, "b": {4: 4.0, 8: 8.0, 16: 16.0}}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "exactly one of budget_mib, budget_ms, budget_bits, got none"),
        ({"budget_mib": 1.0, "budget_bits": 4.0}, "got budget_mib, budget_bits"),
        ({"budget_mib": 0.0}, "budget_mib must be positive and finite, got 0.0"),
        ({"budget_ms": -1.0}, "budget_ms must be positive"),
        ({"budget_bits": math.nan}, "budget_bits must be positive"),
        ({"budget_bits": math.inf}, "budget_bits must be positive"),
        ({"budget_bits": 4.0, "bits": ()}, "bits of the knapsack must be"),
        ({"budget_bits": 4.0, "bits": (4, 5)}, "bits of the knapsack must be"),
        ({"budget_bits": 4.0, "bits": (8, 4)}, "bits of the knapsack must be"),
        ({"budget_bits": 4.0, "bits": (4, 4)}, "bits of the knapsack must be"),
    ],
)
def test_settings_outside_their_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        KnapsackConfig(**settings)


def test_bits_from_json_are_a_tuple_again() -> None:
    from_json: Any = json.loads(json.dumps([4, 8, 16]))
    assert KnapsackConfig(bits=from_json, budget_mib=2.5) == KnapsackConfig(bits=(4, 8, 16), budget_mib=2.5)


@pytest.mark.parametrize(
    ("costs", "sizes", "budget", "message"),
    [
        (COSTS, SIZES, 7.9, "budget must be at least 8, the smallest .* got 7.9"),
        (COSTS, SIZES, math.nan, "budget must be finite"),
        (COSTS, SIZES, -1.0, "budget must be finite"),
        (COSTS, {"a": SIZES["a"]}, 20.0, "of the same layers"),
        ({}, {}, 20.0, "at least one"),
        ({"a": {}}, {"a": {}}, 20.0, "each with an option"),
        (COSTS, {**SIZES, "b": {4: 4.0}}, 20.0, r"of the same bits, got others for \['b'\]"),
        ({**COSTS, "b": {4: math.nan, 8: 1.0, 16: 0.0}}, SIZES, 20.0, "costs must be finite"),
        ({**COSTS, "b": {4: -1.0, 8: 1.0, 16: 0.0}}, SIZES, 20.0, "costs must be finite and not negative"),
        (COSTS, {**SIZES, "b": {4: math.inf, 8: 1.0, 16: 0.0}}, 20.0, "resources must be finite"),
    ],
)
def test_bad_problems_are_refused(costs: Table, sizes: Table, budget: float, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        allocate(costs, sizes, budget)


def test_reasons_and_scores() -> None:
    assert allocate(COSTS, SIZES, 24.0).layers == (
        LayerBits(name="a", num_bits=16, reason="knapsack", score=0.0),
        LayerBits(name="b", num_bits=8, reason="knapsack", score=1.0),
    )


def test_the_smallest_budget_is_enough() -> None:
    assert [layer.num_bits for layer in allocate(COSTS, SIZES, 8.0).layers] == [4, 4]
    tenths: Table = {name: {4: 0.1, 8: 0.2} for name in "abc"}
    # 0.1 + 0.1 + 0.1 is larger than 0.3 in binary.
    assert len(allocate(tenths, tenths, 0.3).layers) == 3


def test_totals_and_replacements_of_a_plan() -> None:
    plan = start()
    assert plan.total(COSTS) == 5.0
    changed = plan.replaced(LayerBits(name="b", num_bits=16, reason="test"))
    assert [layer.num_bits for layer in changed.layers] == [4, 16]
    assert plan.total(COSTS) == 5.0
    with pytest.raises(KeyError):
        plan.replaced(LayerBits(name="c", num_bits=4, reason="test"))


# --- joint verification ----------------------------------------------------------------------------------------------


def start() -> BitPlan:
    return BitPlan(tuple(LayerBits(name=name, num_bits=4, reason="knapsack", score=COSTS[name][4]) for name in "ab"))


def verified(drift: Callable[[int, int], float], **settings: Any) -> Verification:
    """The verification of both layers at 4 bits when the drift depends on the bits of a and b."""
    arguments: dict[str, Any] = {"gate": 1.0, "budget": None, "max_rounds": 10, **settings}
    return promote(start(), COSTS, SIZES, lambda plan: drift(plan["a"].num_bits, plan["b"].num_bits), **arguments)


def bits(result: Verification) -> list[int]:
    return [layer.num_bits for layer in result.plan.layers]


def test_a_plan_that_holds_is_left_alone() -> None:
    result = verified(lambda a, b: 1.0)
    assert (result.plan, result.holds, result.measured, result.steps) == (start(), True, 1.0, ())
    assert "the gate holds" in result.reason


def test_layers_that_cost_little_alone_and_much_together() -> None:
    """1 and 5.5 alone, 97.5 together: the plan predicts 5 mm^2 and measures 97.5 mm."""
    together = {(4, 4): 97.5, (4, 8): 1.0, (8, 4): 5.5}
    result = verified(lambda a, b: together.get((a, b), 0.0), gate=2.0)
    assert bits(result) == [4, 8]
    assert (result.holds, result.measured) == (True, 1.0)
    (step,) = result.steps
    assert (step.layer, step.before_bits, step.after_bits, step.before, step.after) == ("b", 4, 8, 97.5, 1.0)
    assert "lowers the drift" in step.reason
    assert result.plan["b"] == LayerBits(name="b", num_bits=8, reason="verification", score=1.0)
    assert result.plan["a"] == start()["a"]


def test_the_largest_gain_per_resource_goes_first() -> None:
    """Gains per byte: b 4 to 8 is 2/4, a 4 to 8 is 1/4, b 8 to 16 and a 8 to 16 are 1/8, ties by name."""
    result = verified(lambda a, b: 100.0 - a - b, gate=100 - 32)
    assert [(step.layer, step.after_bits) for step in result.steps] == [("b", 8), ("a", 8), ("a", 16), ("b", 16)]
    assert result.holds


def test_a_gain_that_needs_two_promotions_is_found() -> None:
    result = verified(lambda a, b: 0.5 if a >= 8 and b >= 8 else 50.0)
    assert bits(result) == [8, 8]
    assert result.holds
    first, second, third = result.steps
    assert "does not lower the drift by itself" in first.reason
    assert second.after == 0.5
    assert (third.layer, third.kept, third.after) == ("b", False, 50.0)
    assert "stays, because the gate needs it" in third.reason


def test_promotions_that_did_not_help_are_taken_back() -> None:
    result = verified(lambda a, b: 0.5 if a >= 8 else 50.0)
    assert bits(result) == [8, 4]
    assert result.plan["b"] == start()["b"]
    assert (result.holds, result.measured) == (True, 0.5)
    assert [(step.layer, step.after_bits, step.kept) for step in result.steps] == [
        ("b", 8, True),
        ("a", 8, True),
        ("b", 4, True),
    ]
    assert "taken back, because the gate holds without it" in result.steps[-1].reason


@pytest.mark.parametrize(
    ("settings", "expected", "reason"),
    [
        ({"budget": 13.0}, [4, 8], "no promotion fits into the budget any more"),
        ({"budget": 8.0}, [4, 4], "no promotion fits into the budget any more"),
        ({"max_rounds": 2}, [8, 8], "stopped after 2 promotions"),
        ({}, [16, 16], "every layer that may be promoted has its largest number of bits"),
    ],
)
def test_a_gate_out_of_reach_is_said(settings: dict[str, Any], expected: list[int], reason: str) -> None:
    result = verified(lambda a, b: 50.0 - a - b, **settings)
    assert not result.holds
    assert bits(result) == expected
    assert reason in result.reason
    assert f"drift {50 - sum(expected)} mm, gate 1 mm" in result.reason
    assert json.loads(json.dumps(result.to_json()))["holds"] is False


def test_layers_without_costs_are_never_promoted() -> None:
    result = promote(start(), {"a": COSTS["a"]}, SIZES, lambda plan: 9.0, gate=1.0, budget=None, max_rounds=9)
    assert bits(result) == [16, 4]


def test_layers_that_the_budget_does_not_count_use_none_of_it() -> None:
    plan = BitPlan((*start().layers, LayerBits(name="outside", num_bits=16, reason="role")))
    result = promote(plan, COSTS, SIZES, lambda plan: 9.0, gate=1.0, budget=24.0, max_rounds=9)
    assert result.plan.total({**SIZES, "outside": {16: 0.0}}) <= 24.0
    assert bits(result) == [16, 8, 16]


def test_more_bits_that_are_faster_go_first() -> None:
    times: Table = {"a": {4: 0.2, 8: 0.1}, "b": {4: 0.2, 8: 0.3}}
    costs: Table = {"a": {4: 1e-6, 8: 0.0}, "b": {4: 1.0, 8: 0.0}}
    result = promote(start(), costs, times, lambda plan: 9.0, gate=1.0, budget=0.4, max_rounds=9)
    assert [step.layer for step in result.steps] == ["a", "b"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gate": -1.0}, "must not be negative"),
        ({"gate": math.nan}, "must not be negative"),
        ({"max_rounds": -1}, "must not be negative"),
    ],
)
def test_bad_gates_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        verified(lambda a, b: 0.0, **settings)


def test_a_measurement_that_is_no_number_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="must be a number, got NaN"):
        verified(lambda a, b: math.nan)
    with pytest.raises(InvalidInputError, match=r"costs must hold the bits of the plan, got others for \['a'\]"):
        promote(start(), {"a": {8: 1.0}}, SIZES, lambda plan: 0.0, gate=1.0, budget=None, max_rounds=1)


# --- layer times -----------------------------------------------------------------------------------------------------


def test_every_shape_is_measured_at_every_number_of_bits() -> None:
    times = measure_layer_times([(8, 16), (16, 8), (8, 16)], [4, 16, 4], 3, rounds=3)
    assert {shape: set(by_bits) for shape, by_bits in times.items()} == {(8, 16): {4, 16}, (16, 8): {4, 16}}
    assert all(0 < milliseconds < 1e3 for by_bits in times.values() for milliseconds in by_bits.values())


def test_a_time_is_the_median_in_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock on which the calls of the 16-bit layer take 1, 2 and 90 s, and those of the other 10, 20 and 30 s."""
    durations = iter([1.0, 10.0, 20.0, 2.0, 90.0, 30.0])
    now = [0.0, False]

    def clock() -> float:
        if now[1]:
            now[0] += next(durations)
        now[1] = not now[1]
        return now[0]

    monkeypatch.setattr("daptq.layers.timing.time.perf_counter", clock)
    monkeypatch.setattr(timing, "_layer", lambda *_, **__: abs)
    # The order of the calls is 16, 4, then 4, 16, then 16, 4.
    times = measure_layer_times([(8, 16)], [4, 16], 3, rounds=3)
    assert times == {(8, 16): {4: 20e3, 16: 2e3}}


@pytest.mark.parametrize(("rows", "rounds"), [(0, 30), (1, 0)])
def test_nothing_to_measure_is_refused(rows: int, rounds: int) -> None:
    with pytest.raises(InvalidInputError, match="rows and rounds must be at least 1"):
        measure_layer_times([(8, 16)], [4], rows, rounds=rounds)


def test_bits_without_a_layer_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="num_bits"):
        measure_layer_times([(8, 16)], [9], 1)


def test_the_solvers_line_is_dropped_and_nothing_else(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    solve = scipy.optimize.milp

    def talkative(*arguments: Any, **options: Any) -> Any:
        os.write(1, b"of another thread\n" + knapsack._STRAY_LINE + b" tmpSolver.run();\n")
        return solve(*arguments, **options)

    monkeypatch.setattr(knapsack, "milp", talkative)
    plan = allocate({"a": {2: 1.0, 4: 0.0}}, {"a": {2: 1.0, 4: 2.0}}, 2.0)
    os.write(1, b"after\n")
    assert plan["a"].num_bits == 4
    assert capfd.readouterr().out == "of another thread\nafter\n"


def test_the_standard_output_comes_back_after_an_error(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any, **__: Any) -> Any:
        os.write(1, b"solving\n")
        raise ZeroDivisionError

    monkeypatch.setattr(knapsack, "milp", failing)
    with pytest.raises(ZeroDivisionError):
        allocate({"a": {2: 1.0, 4: 0.0}}, {"a": {2: 1.0, 4: 2.0}}, 2.0)
    os.write(1, b"after\n")
    assert capfd.readouterr().out == "solving\nafter\n"
