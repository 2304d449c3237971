"""The recipe that command-line options ask for: keywords, methods by name, settings by stage; and refusals."""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib.metadata import EntryPoint
from types import ModuleType
from typing import Any, Literal

import click
import pytest

from daptq import catalog
from daptq.activation_scaling.per_step import PerStepConfig
from daptq.allocation.even import EvenConfig
from daptq.allocation.knapsack import KnapsackConfig
from daptq.allocation.verification import VerificationConfig
from daptq.catalog import METHODS
from daptq.cli import main
from daptq.cli.recipe_choice import chosen_recipe
from daptq.cli.recipe_options import RecipeCommand, plain_type
from daptq.compensation.csrc import CsrcConfig
from daptq.compensation.paired import PairedConfig
from daptq.drift.models.kinematic import KinematicConfig
from daptq.drift.models.virtual_chain import VirtualChainConfig
from daptq.errors import InvalidInputError, RecipeError, UnknownNameError
from daptq.quantization.recipe import METHOD_STAGES, RoleBits
from daptq.recipes import Recipe, da_ptq, da_ptq_plus, round_to_nearest
from daptq.rounding.gptq import GptqConfig
from daptq.rounding.nearest import NearestConfig
from daptq.rounding.transform import TransformConfig
from daptq.sensitivity.rounding import RoundingSensitivityConfig


def options() -> dict[str, click.Parameter]:
    command = main.commands["quantize"]
    return {parameter.opts[0]: parameter for parameter in command.get_params(click.Context(command))}


def test_every_keyword_of_every_recipe_and_every_kind_of_method_is_an_option() -> None:
    import inspect

    found = options()
    for method in METHODS.names():
        for name in inspect.signature(METHODS.provided(method)).parameters:
            assert f"--{name.replace('_', '-')}" in found
    for kind, _ in METHOD_STAGES.values():
        assert f"--{kind.kind.replace(' ', '-')}" in found
    assert {"--set", "--method", "--output"} <= set(found)
    assert list(found)[-1] == "--help"


def test_types_and_help_come_from_the_recipes() -> None:
    found = options()
    assert found["--weight-bits"].type is click.INT
    assert found["--gate-mm"].type is click.FLOAT
    assert isinstance(found["--order"].type, click.Choice)
    assert isinstance(found["--asymmetric"], click.Option)
    assert found["--asymmetric"].is_flag
    texts = {name: getattr(parameter, "help", "") for name, parameter in found.items()}
    assert texts["--budget-mib"] == "Size of the linear layers in the checkpoint [MiB].  [da-ptq-plus]"
    assert texts["--rounding"] == "Method of the rounding: gptq, nearest."
    assert "none" in texts["--allocation"]
    assert "cross-channel" in texts["--compensation"]


@pytest.mark.parametrize(
    ("hint", "expected"),
    [(int, int), (float | None, float), (Literal["a", "b"], Literal["a", "b"]), (dict, None), (int | str, None)],
)
def test_plain_types(hint: Any, expected: Any) -> None:
    assert plain_type(hint) == expected


@pytest.mark.parametrize(
    ("method", "settings", "assignments", "expected"),
    [
        ("da-ptq", {}, (), da_ptq()),
        (
            "da-ptq",
            {"keep_fraction": 0.5, "compensation": "per-channel"},
            (),
            da_ptq(keep_fraction=0.5, compensation="per-channel"),
        ),
        ("da-ptq", {"compensation": "none"}, (), da_ptq(compensation="none")),
        ("da-ptq", {"compensation": "paired"}, (), replace(da_ptq(), compensation=PairedConfig())),
        ("da-ptq-plus", {"compensation": "none"}, (), replace(da_ptq_plus(), compensation=None)),
        (
            "da-ptq-plus",
            {"compensation": "csrc"},
            ("compensation.rank=none",),
            replace(da_ptq_plus(), compensation=CsrcConfig(rank=None)),
        ),
        ("da-ptq", {"drift_model": "se3"}, (), da_ptq(drift_model="se3")),
        ("da-ptq", {"drift_model": "kinematic"}, (), replace(da_ptq(), drift=KinematicConfig())),
        # Settings that both methods have are kept.
        (
            "round-to-nearest",
            {"group_size": 32, "rounding": "gptq"},
            (),
            replace(round_to_nearest(), rounding=GptqConfig(group_size=32)),
        ),
        (
            "da-ptq-plus",
            {"asymmetric": True, "rounding": "nearest"},
            (),
            replace(da_ptq_plus(), rounding=NearestConfig(asymmetric=True)),
        ),
        (
            "da-ptq",
            {"rounding": "gptq"},
            ("rounding.damping=0.1", "rounding.act-order=true"),
            replace(da_ptq(), rounding=GptqConfig(damping=0.1, act_order=True)),
        ),
        (
            "da-ptq",
            {"activation_scaling": "per-step"},
            ("activation-scaling.percentile=99",),
            replace(da_ptq(), activation_scaling=PerStepConfig(percentile=99)),
        ),
        (
            "round-to-nearest",
            {"allocation": "even"},
            ("allocation.budget_bits=3.5",),
            replace(round_to_nearest(), allocation=EvenConfig(budget_bits=3.5)),
        ),
        (
            "da-ptq",
            {"allocation": "knapsack", "sensitivity": "rounding"},
            ("allocation.budget_bits=4", "allocation.bits=3,4,8", "sensitivity.states=16"),
            replace(
                da_ptq(),
                allocation=KnapsackConfig(budget_bits=4.0, bits=(3, 4, 8)),
                sensitivity=RoundingSensitivityConfig(states=16),
            ),
        ),
        (
            "round-to-nearest",
            {},
            ("transform.rotation-block=16", "weight-bits.vision=8"),
            replace(round_to_nearest(), transform=TransformConfig(rotation_block=16), weight_bits=RoleBits(vision=8)),
        ),
        (
            "da-ptq-plus",
            {},
            ("verification.states=8", "weight_bits.vision=none"),
            replace(
                da_ptq_plus(), verification=VerificationConfig(states=8), weight_bits=RoleBits(vision=None, connector=4)
            ),
        ),
        ("da-ptq", {}, ("drift-model.damping=0.001",), replace(da_ptq(), drift=VirtualChainConfig(damping=1e-3))),
    ],
)
def test_what_is_asked_for(
    method: str, settings: dict[str, Any], assignments: tuple[str, ...], expected: Recipe
) -> None:
    assert chosen_recipe(method, settings, assignments) == expected


@pytest.mark.parametrize(
    ("method", "settings", "assignments", "error", "message"),
    [
        ("da-ptk", {}, (), UnknownNameError, "Did you mean 'da-ptq'"),
        (
            "round-to-nearest",
            {"keep_fraction": 0.3},
            (),
            RecipeError,
            "settings of round-to-nearest must be among --weight-bits, .*, got --keep-fraction. Leave it out",
        ),
        (
            "da-ptq",
            {"rounding": "gtpq"},
            (),
            UnknownNameError,
            "rounding must be one of gptq, nearest, got 'gtpq'. Did you mean 'gptq'",
        ),
        ("da-ptq-plus", {"compensation": "cross-channel"}, (), UnknownNameError, "compensation must be one of"),
        ("da-ptq", {"drift_model": "kinematics"}, (), UnknownNameError, "Did you mean 'kinematic'"),
        ("round-to-nearest", {"drift_model": "se3"}, (), RecipeError, "got --drift-model. Leave it out"),
        ("round-to-nearest", {"sensitivity": "rounding"}, (), RecipeError, "got --sensitivity. Leave it out"),
        (
            "da-ptq",
            {"keep_fraction": 0.5, "allocation": "even"},
            ("allocation.budget_bits=4",),
            RecipeError,
            "--keep-fraction must be left out",
        ),
        ("da-ptq", {"allocation": "knapsack"}, (), RecipeError, "budget of the knapsack must be exactly one"),
        (
            "da-ptq",
            {"allocation": "knapsack"},
            ("allocation.budget_bits=4",),
            RecipeError,
            "sensitivity must be 'rounding'",
        ),
        (
            "da-ptq",
            {},
            ("rounding.scale",),
            RecipeError,
            "--set must be given as stage.setting=value, got 'rounding.scale'",
        ),
        ("da-ptq", {}, ("scale=absmax",), RecipeError, "--set must be given as stage.setting=value"),
        ("da-ptq", {}, ("roundin.scale=absmax",), UnknownNameError, "stage of --set must be .*Did you mean 'rounding'"),
        (
            "da-ptq",
            {},
            ("rounding.group_siz=32",),
            UnknownNameError,
            "setting of the rounding must be .*Did you mean 'group_size'",
        ),
        ("da-ptq", {}, ("rounding.scale=max",), RecipeError, "scale must be one of searched, absmax, got 'max'"),
        (
            "da-ptq",
            {},
            ("rounding.group_size=many",),
            RecipeError,
            "group_size of the rounding must be a whole number, got 'many'",
        ),
        (
            "da-ptq",
            {},
            ("rounding.asymmetric=yes",),
            RecipeError,
            "asymmetric of the rounding must be true or false, got 'yes'",
        ),
        (
            "da-ptq",
            {},
            ("allocation.fraction=much",),
            RecipeError,
            "fraction of the allocation must be a number, got 'much'",
        ),
        ("round-to-nearest", {}, ("allocation.fraction=1",), RecipeError, "Choose one with --allocation"),
    ],
)
def test_what_is_refused(
    method: str, settings: dict[str, Any], assignments: tuple[str, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        chosen_recipe(method, settings, assignments)


def test_a_keyword_that_an_option_of_every_recipe_has_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def acme_recipe(*, seed: int = 0) -> Recipe:
        raise NotImplementedError

    module = ModuleType("acme_recipe")
    module.acme_recipe = acme_recipe  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "acme_recipe", module)
    points = {"daptq.method": [EntryPoint("acme-recipe", "acme_recipe", "daptq.method")]}
    monkeypatch.setattr(catalog, "entry_points", lambda *, group: points.get(group, []))
    command = main.commands["quantize"]
    assert isinstance(command, RecipeCommand)
    with pytest.raises(InvalidInputError, match=r"got \['seed'\] of acme-recipe. Rename the keyword"):
        command.get_params(click.Context(command))
