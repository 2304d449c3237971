"""Recipes as data: JSON round trip, strictness, defaults, refusals."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint
from types import ModuleType
from typing import Any, ClassVar

import pytest

from daptq import catalog
from daptq.activation_scaling.dynamic import DynamicConfig
from daptq.activation_scaling.per_step import PerStepConfig
from daptq.activation_scaling.static import StaticConfig
from daptq.allocation.even import EvenConfig
from daptq.allocation.knapsack import KnapsackConfig
from daptq.allocation.top_fraction import TopFractionConfig
from daptq.allocation.verification import VerificationConfig
from daptq.catalog import METHODS
from daptq.compensation.csrc import CsrcConfig
from daptq.drift.models.virtual_chain import VirtualChainConfig
from daptq.errors import RecipeError, UnknownNameError
from daptq.interfaces.contract import Interface, Tap
from daptq.interfaces.into_attention_keys import IntoAttentionKeys
from daptq.interfaces.into_attention_values import IntoAttentionValues
from daptq.interfaces.into_consumers import IntoConsumers
from daptq.interfaces.into_norm import IntoNorm
from daptq.interfaces.into_producer import IntoProducer
from daptq.methods import Needs
from daptq.quantization.recipe import METHOD_PARTS, RoleActivationBits, RoleBits
from daptq.recipes import Recipe, da_ptq, da_ptq_plus, round_to_nearest
from daptq.rounding.nearest import NearestConfig
from daptq.sensitivity.phi import SensitivityConfig
from daptq.sensitivity.rounding import RoundingSensitivityConfig

RECIPES = {
    "paper": da_ptq(),
    "everything else": replace(
        da_ptq(
            weight_bits=3,
            keep_fraction=0.5,
            keep_last_blocks=0,
            compensation="per-channel",
            order="allocation-first",
            folding="producer",
            scale="absmax",
            calibration_states=7,
        ),
        sensitivity=SensitivityConfig(reduction="mean"),
        weight_bits=RoleBits(vision=8, connector=4, language=2, action_head=None),
    ),
    "no compensation": da_ptq(compensation="none"),
    "dense": replace(da_ptq(), compensation=CsrcConfig(rank=None, selection="always")),
    "whole chunk": replace(da_ptq(), drift_horizon="chunk"),
    "nearest": round_to_nearest(weight_bits=8),
    "own interface": replace(
        da_ptq(),
        interfaces=(
            Interface("x", Tap("b"), (IntoConsumers(("c", "e"), ("d",)), IntoProducer("a"))),
            Interface("y", Tap("b", "output", heads=2), (IntoAttentionKeys("q", "k", heads=4, kv_heads=2),)),
            Interface("z", Tap("b"), (IntoAttentionValues("o", "v", heads=4, kv_heads=2), IntoNorm("n", bias=True))),
        ),
    ),
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_recipe_survives_json(recipe: Recipe) -> None:
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe


def test_recipes_differ_in_json() -> None:
    assert len({json.dumps(recipe.to_json(), sort_keys=True) for recipe in RECIPES.values()}) == len(RECIPES)


def test_the_papers_defaults() -> None:
    recipe = da_ptq()
    assert recipe.weight_bits == RoleBits(vision=None, connector=None, language=4, action_head=4)
    assert recipe.activation_bits == RoleActivationBits()
    assert recipe.activation_bits.of("language") == 8
    assert recipe.allocation == TopFractionConfig(fraction=0.3, by="count", keep_last_blocks=2, scope="action_head")
    assert recipe.order == "compensation-first"
    assert recipe.calibration_states == 512
    assert recipe.drift_model == VirtualChainConfig(damping=3e-4, translation_weight=1.8, rotation_weight=0.15)
    assert recipe.needs.data


def test_round_to_nearest_does_nothing_but_round() -> None:
    recipe = round_to_nearest()
    assert recipe.compensation is None
    assert recipe.allocation is None
    assert not recipe.needs.data
    assert recipe.rounding == da_ptq().rounding


def test_every_listed_method_builds_a_recipe_of_its_name() -> None:
    assert {"da-ptq", "round-to-nearest"} <= set(METHODS.names())
    for name in METHODS.names():
        recipe = getattr(METHODS.load(name), name.replace("-", "_"))()
        assert recipe.name == name


@pytest.mark.parametrize("bits", [0, 1, 5, 9, 16, 5.5, 4.0, "4", True])
@pytest.mark.parametrize("factory", [da_ptq, round_to_nearest])
def test_bits_without_a_kernel_are_refused(factory: Any, bits: Any) -> None:
    with pytest.raises(RecipeError, match="weight_bits of language must be one of 2, 3, 4, 8"):
        factory(weight_bits=bits)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep_fraction": 1.5}, "keep_fraction must be between 0 and 1, got 1.5"),
        ({"keep_fraction": -0.1}, "keep_fraction must be between 0 and 1"),
        ({"keep_last_blocks": -1}, "keep_last_blocks"),
        ({"activation_bits": 5}, "activation_bits of vision must be one of 4, 8, 16, got 5"),
        ({"activation_bits": 8.0}, "activation_bits of vision must be one of 4, 8, 16"),
        ({"calibration_states": 0}, "calibration_states must be a positive integer"),
        ({"order": "both"}, "order must be one of compensation-first, allocation-first"),
        ({"folding": "nowhere"}, "folding must be one of auto, consumer, producer"),
        ({"compensation": "all"}, "compensation must be one of cross-channel, per-channel, none"),
        ({"scale": "max"}, "scale must be one of searched, absmax"),
    ],
)
def test_settings_outside_their_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        da_ptq(**settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": 1}, "recipe must have known settings only, got .'colour'"),
        ({"compensation": {"rank": 3}}, "method of the compensation must be one of csrc, paired, got None"),
        ({"compensation": {"method": "csrc", "rang": 3}}, "compensation csrc must have known settings only, .*'rang'"),
        ({"rounding": {"scale": "searched"}}, "method of the rounding must be one of gptq, nearest, got None"),
        ({"activation_scaling": {"method": "dynamic", "percentile": 1}}, "activation scaling dynamic .* It has none"),
        ({"allocation": {"method": "top-fraction", "fraction": "much"}}, "allocation top-fraction must be complete"),
        ({"weight_bits": {"language": 5}}, "weight_bits of language"),
    ],
)
def test_json_of_something_else_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe.from_json({**da_ptq().to_json(), **change})


def test_the_drift_horizon_is_checked_and_may_be_left_out() -> None:
    with pytest.raises(RecipeError, match="drift_horizon must be one of executed, chunk, got 'all'"):
        replace(da_ptq(), drift_horizon="all")  # type: ignore[arg-type]
    obj = da_ptq().to_json()
    assert obj.pop("drift_horizon") == "executed"
    assert Recipe.from_json(obj) == da_ptq()


def test_an_unknown_drift_model_is_refused_with_near_names() -> None:
    with pytest.raises(UnknownNameError, match="drift model must be one of .*, got 'kinematics'. Did you mean 'kinem"):
        da_ptq(drift_model="kinematics")
    with pytest.raises(UnknownNameError, match="Did you mean 'kinematic'"):
        Recipe.from_json({**da_ptq().to_json(), "drift": {"method": "kinematics"}})


@pytest.mark.parametrize(
    ("drift", "message"),
    [
        ({"damping": 1.0}, "method of the drift model must be one of .*se3.*, got None"),
        ({"method": "virtual-chain", "links": 3}, "drift model virtual-chain must have known settings only"),
        ("se3", "drift_model must be the settings of one of .*se3.*, got 'se3'"),
    ],
)
def test_a_drift_model_of_something_else_is_refused(drift: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe.from_json({**da_ptq().to_json(), "drift": drift})


@pytest.mark.parametrize("part", list(METHOD_PARTS))
def test_an_unknown_method_is_refused_by_name(part: str) -> None:
    with pytest.raises(UnknownNameError, match="must be one of .*, got 'magic'"):
        Recipe.from_json({**da_ptq().to_json(), part: {"method": "magic"}})


def test_activations_of_older_checkpoints_become_a_scaling() -> None:
    now = round_to_nearest().to_json()
    del now["activation_scaling"]
    for scaling, expected in (
        ("dynamic", DynamicConfig()),
        ("static", StaticConfig(percentile=99.0)),
        ("per-step", PerStepConfig(percentile=99.0)),
    ):
        recipe = Recipe.from_json({**now, "activations": {"scaling": scaling, "percentile": 99.0}})
        assert recipe.activation_scaling == expected
    with pytest.raises(UnknownNameError, match="activation scaling must be one of dynamic, per-step, static"):
        Recipe.from_json({**now, "activations": {"scaling": "fixed", "percentile": 99.0}})


def test_a_recipe_needs_what_its_methods_need() -> None:
    assert round_to_nearest().needs == Needs()
    assert da_ptq().needs == Needs(data=True, scores=True, gradients=True)
    plus = da_ptq_plus().needs
    assert plus == Needs(weighted_grams=True, interface_sensitivities=True, costs=True)
    assert plus.data
    assert plus.metric
    assert plus.gradients
    assert Needs(weighted_grams=True).gradients
    assert Needs(interface_sensitivities=True).gradients
    assert not Needs(costs=True, ranges=True, metric=True).gradients
    assert not plus.ranges
    assert replace(round_to_nearest(), activation_scaling=StaticConfig()).needs == Needs(ranges=True)
    # A sensitivity that nobody asks for needs nothing.
    assert replace(round_to_nearest(), sensitivity=RoundingSensitivityConfig()).needs == Needs()


def test_the_drift_model_keeps_its_key() -> None:
    written = da_ptq().to_json()
    assert written["drift"]["method"] == "virtual-chain"
    assert "drift_model" not in written
    named = {("drift_model" if key == "drift" else key): value for key, value in written.items()}
    assert Recipe.from_json(named) == Recipe.from_json(written) == da_ptq()


@dataclass(frozen=True, kw_only=True)
class Costly(SensitivityConfig):
    """A sensitivity of another distribution whose scores are costs."""

    method: ClassVar[str] = "costly"
    gives_costs: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class Keeper(EvenConfig):
    """An allocation of another distribution that keeps layers."""

    method: ClassVar[str] = "keeper"
    keeps_layers: ClassVar[bool] = True


def test_refusals_name_every_method_that_would_do(monkeypatch: pytest.MonkeyPatch) -> None:
    points = {}
    for kind, provides, method in (("sensitivity", "SENSITIVITY", Costly), ("allocation", "ALLOCATION", Keeper)):
        module = ModuleType(f"acme_{kind}")
        setattr(module, provides, method)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        points[f"daptq.{kind}"] = [EntryPoint(method.method, module.__name__, f"daptq.{kind}")]
    monkeypatch.setattr(catalog, "entry_points", lambda *, group: points.get(group, []))
    knapsack = KnapsackConfig(budget_bits=4.0)
    with pytest.raises(RecipeError, match="sensitivity must be 'rounding' or 'costly' for the allocation knapsack"):
        replace(round_to_nearest(), allocation=knapsack)
    with pytest.raises(RecipeError, match="sensitivity must be 'rounding' or 'costly' for a verification"):
        replace(round_to_nearest(), verification=VerificationConfig())
    with pytest.raises(RecipeError, match="Allocations that keep layers: 'knapsack' or 'top-fraction' or 'keeper'"):
        replace(round_to_nearest(float_where_faster=True), allocation=EvenConfig(budget_bits=4.0))
    assert replace(round_to_nearest(), allocation=knapsack, sensitivity=Costly()).needs.scores


def test_json_without_a_name_is_refused() -> None:
    with pytest.raises(RecipeError, match="recipe must be complete"):
        Recipe.from_json({})


def test_rounding_rule_is_checked() -> None:
    with pytest.raises(RecipeError, match="scale must be one of"):
        NearestConfig(scale="best")  # type: ignore[arg-type]
