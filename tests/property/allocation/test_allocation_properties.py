"""Eq. 20: the fraction is never exceeded, order and names do not matter, and the ranking is that of the scores."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daptq.allocation import top_fraction
from daptq.allocation.plan import BitPlan, LayerBits
from daptq.allocation.top_fraction import TopFractionConfig
from daptq.errors import InvalidInputError, RecipeError

SCORES = st.dictionaries(
    st.text("abcdefgh", min_size=1, max_size=4), st.floats(0, 1e6, allow_subnormal=False), min_size=1, max_size=30
)
FRACTIONS = st.fractions(0, 1, max_denominator=1000)


def allocate(scores: dict[str, float], fraction: float, *, num_bits: int = 4, **settings: Any) -> BitPlan:
    """The allocation with the same bits for every layer that is not kept."""
    return top_fraction.allocate(scores, fraction, bits=dict.fromkeys(scores, num_bits), **settings)


@given(SCORES, FRACTIONS)
def test_count_is_the_largest_within_the_fraction(scores: dict[str, float], fraction: Fraction) -> None:
    kept = allocate(scores, float(fraction)).kept
    assert len(kept) == math.floor(fraction * len(scores))
    lowest = min((scores[name] for name in kept), default=math.inf)
    assert all(scores[name] <= lowest for name in scores if name not in kept)


@given(SCORES, FRACTIONS, st.data())
def test_order_of_the_layers_does_not_matter(scores: dict[str, float], fraction: Fraction, data: st.DataObject) -> None:
    shuffled = {name: scores[name] for name in data.draw(st.permutations(list(scores)))}
    first, second = allocate(scores, float(fraction)), allocate(shuffled, float(fraction))
    assert {layer.name: layer for layer in first.layers} == {layer.name: layer for layer in second.layers}
    assert [layer.name for layer in second.layers] == list(shuffled)


@given(SCORES, FRACTIONS)
def test_renamed_layers_get_the_same_bits(scores: dict[str, float], fraction: Fraction) -> None:
    distinct = {name: index + score / 1e7 for index, (name, score) in enumerate(scores.items())}
    renamed = {f"layer.{len(distinct) - index}": score for index, score in enumerate(distinct.values())}
    bits = [layer.num_bits for layer in allocate(distinct, float(fraction)).layers]
    assert bits == [layer.num_bits for layer in allocate(renamed, float(fraction)).layers]


@given(SCORES, FRACTIONS, st.data())
def test_parameters_never_exceed_the_fraction(
    scores: dict[str, float], fraction: Fraction, data: st.DataObject
) -> None:
    sizes = {name: data.draw(st.integers(1, 10**9)) for name in scores}
    plan = allocate(scores, float(fraction), by="parameters", sizes=sizes)
    used, allowed = sum(sizes[name] for name in plan.kept), fraction * sum(sizes.values())
    assert used <= allowed * (1 + Fraction(1, 10**8))
    rest = sorted(plan.quantized, key=lambda name: (-scores[name], name))
    if rest:
        assert used + sizes[rest[0]] > allowed * (1 - Fraction(1, 10**8))


@given(SCORES, FRACTIONS, st.data())
def test_layers_that_are_always_kept_come_in_addition(
    scores: dict[str, float], fraction: Fraction, data: st.DataObject
) -> None:
    keep = data.draw(st.sets(st.sampled_from(sorted(scores))))
    plan = allocate(scores, float(fraction), keep=keep)
    without = allocate(scores, float(fraction))
    assert set(plan.kept) == set(without.kept) | keep
    assert sum(layer.reason == "score" for layer in plan.layers) <= fraction * len(scores)


@pytest.mark.parametrize(("fraction", "count"), [(0.29, 29), (0.3, 30), (0.57, 57), (0.0, 0), (1.0, 100)])
def test_fractions_without_exact_binary_form(fraction: float, count: int) -> None:
    scores = {f"layer{i}": float(i) for i in range(100)}
    assert allocate(scores, fraction).kept == tuple(f"layer{i}" for i in range(100 - count, 100))


def test_each_layer_gets_its_own_bits() -> None:
    plan = top_fraction.allocate({"a": 3.0, "b": 2.0, "c": 1.0}, 0.4, bits={"a": 2, "b": 3, "c": 8})
    assert [layer.num_bits for layer in plan.layers] == [16, 3, 8]


def test_reasons_and_bits() -> None:
    plan = allocate({"a": 3.0, "b": 2.0, "c": 1.0}, 0.4, keep={"c": "folding"}, num_bits=3)
    assert plan.layers == (
        LayerBits(name="a", num_bits=16, reason="score", score=3.0),
        LayerBits(name="b", num_bits=3, reason="rest", score=2.0),
        LayerBits(name="c", num_bits=16, reason="folding", score=1.0),
    )
    assert plan.quantized == ("b",)
    assert plan["b"].num_bits == 3
    assert "c" in plan
    assert "d" not in plan
    with pytest.raises(KeyError):
        plan["d"]


@given(SCORES, FRACTIONS)
def test_plan_survives_json(scores: dict[str, float], fraction: Fraction) -> None:
    plan = allocate(scores, float(fraction))
    assert BitPlan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize(
    ("scores", "fraction", "settings", "message"),
    [
        ({"a": 1.0}, 1.5, {}, "fraction must be between 0 and 1"),
        ({"a": 1.0}, -0.1, {}, "fraction must be between 0 and 1"),
        ({"a": 1.0}, math.nan, {}, "fraction must be between 0 and 1"),
        ({"a": math.nan}, 0.5, {}, "scores must be finite"),
        ({"a": 1.0}, 0.5, {"keep": ["b"]}, "layers to keep must have a score"),
        ({"a": 1.0}, 0.5, {"by": "parameters"}, "sizes must be given"),
        ({"a": 1.0}, 0.5, {"by": "bytes"}, "by must be one of"),
        ({"a": 1.0}, 0.5, {"num_bits": 5}, "num_bits of layer a must be one of"),
    ],
)
def test_bad_arguments_are_refused(
    scores: dict[str, float], fraction: float, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        allocate(scores, fraction, **settings)


def test_a_layer_is_decided_once() -> None:
    twice = (LayerBits(name="a", num_bits=4, reason="rest"),) * 2
    with pytest.raises(InvalidInputError, match="unique"):
        BitPlan(twice)


@pytest.mark.parametrize(
    "settings",
    [{"fraction": 1.5}, {"fraction": math.nan}, {"by": "bytes"}, {"keep_last_blocks": -1}, {"scope": "vision"}],
)
def test_settings_outside_their_range_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(RecipeError):
        TopFractionConfig(**settings)  # type: ignore[arg-type]
