"""The recipe that command-line options ask for: keywords, methods by name, settings by part; and refusals."""

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
from daptq.cli.settings import as_text, method_settings, plain_type, recipe_settings
from daptq.compensation.csrc import CsrcConfig
from daptq.compensation.paired import PairedConfig
from daptq.drift.models.kinematic import KinematicConfig
from daptq.drift.models.virtual_chain import VirtualChainConfig
from daptq.errors import InvalidInputError, RecipeError, UnknownNameError
from daptq.quantization.recipe import METHOD_PARTS, PLAIN_PARTS, RoleBits, method_named
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
    for kind, _ in METHOD_PARTS.values():
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
        ("da-ptq", {"drift_model": "kinematic"}, (), replace(da_ptq(), drift_model=KinematicConfig())),
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
        ("da-ptq", {}, ("drift-model.damping=0.001",), replace(da_ptq(), drift_model=VirtualChainConfig(damping=1e-3))),
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
            "--set must be given as part.setting=value, got 'rounding.scale'",
        ),
        ("da-ptq", {}, ("scale=absmax",), RecipeError, "--set must be given as part.setting=value"),
        ("da-ptq", {}, ("roundin.scale=absmax",), UnknownNameError, "part of --set must be .*Did you mean 'rounding'"),
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


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipes of other distributions: three that can be used, four that cannot."""

    def acme_wide(*, scale: float = 1.0, asymmetric: str = "", budget_bits: bool = True) -> Recipe:
        """A recipe whose keywords have names of daptq's own, and other types.

        Args:
            scale: By how much weights shrink.
            asymmetric: A word.
            budget_bits: A switch.
        """
        return replace(
            round_to_nearest(), name=f"acme {scale!r} {asymmetric} {budget_bits}", calibration_states=1 + budget_bits
        )

    def acme_needy(*, level: Literal["low", "high"], **others: int) -> Recipe:
        return replace(round_to_nearest(), name=level)

    def acme_wrong() -> dict[str, int]:
        return {}

    def acme_seed(*, seed: int = 0, bound: int = 1) -> Recipe:
        raise NotImplementedError

    def acme_set(*, set: int = 0) -> Recipe:  # noqa: A002
        raise NotImplementedError

    def acme_hint(*, bound: "Nowhere" = 0) -> Recipe:  # type: ignore[name-defined]  # noqa: F821
        raise NotImplementedError

    points = [EntryPoint("acme-lost", "acme_lost_somewhere", "daptq.method")]
    for function in (acme_wide, acme_needy, acme_wrong, acme_seed, acme_set, acme_hint):
        module = ModuleType(function.__name__)
        setattr(module, function.__name__, function)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        points.append(EntryPoint(module.__name__.replace("_", "-"), module.__name__, "daptq.method"))
    monkeypatch.setattr(catalog, "entry_points", lambda *, group: points if group == "daptq.method" else [])
    monkeypatch.setattr(catalog, "_warn", catalog.LOG.warning)  # else once in a process


def parsed(*arguments: str) -> dict[str, Any]:
    """The parameters of `daptq quantize` that arguments set."""
    context = main.commands["quantize"].make_context("quantize", ["x", "--output", "y", *arguments])
    return {name: value for name, value in context.params.items() if value is not None}


@pytest.mark.usefixtures("outside")
def test_keywords_have_the_types_of_the_recipe_that_is_chosen() -> None:
    before = parsed("--scale", "absmax", "--asymmetric", "--budget-bits", "3.5", "--method", "da-ptq")
    assert (before["scale"], before["asymmetric"], before["budget_bits"]) == ("absmax", True, 3.5)
    with pytest.raises(click.BadParameter, match="'0.5' is not one of 'searched', 'absmax'"):
        parsed("--scale", "0.5")
    after = parsed("--scale", "0.5", "--asymmetric", "word", "--no-budget-bits", "--method=acme-wide")
    assert (after["scale"], after["asymmetric"], after["budget_bits"]) == (0.5, "word", False)
    settings = {name: after[name] for name in ("scale", "asymmetric", "budget_bits")}
    assert chosen_recipe("acme-wide", settings).name == "acme 0.5 word False"
    # The help of a recipe is its own; of others it names those that say the same.
    assert str(getattr(options()["--scale"], "help", "")).endswith("[da-ptq, round-to-nearest]")


@pytest.mark.usefixtures("outside")
def test_texts_stand_for_values_of_the_chosen_recipe() -> None:
    assert chosen_recipe("acme-wide", {"scale": "0.25", "budget_bits": "false"}).name == "acme 0.25  False"
    assert chosen_recipe("da-ptq", {"scale": "absmax", "weight_bits": "3"}) == da_ptq(scale="absmax", weight_bits=3)
    for method, settings, message in (
        ("acme-wide", {"scale": "absmax"}, "--scale must be a number, got 'absmax'"),
        ("da-ptq", {"scale": "0.5"}, "--scale must be one of searched, absmax, got '0.5'"),
        ("acme-needy", {}, "settings of acme-needy must include --level, got none"),
        ("acme-needy", {"level": "top"}, "--level must be one of low, high, got 'top'"),
    ):
        with pytest.raises(RecipeError, match=message):
            chosen_recipe(method, settings)
    with pytest.raises(InvalidInputError, match="method 'acme-wrong' must return a Recipe, got dict"):
        chosen_recipe("acme-wrong", {})


@pytest.mark.usefixtures("outside")
def test_recipes_that_cannot_be_used_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    found = options()
    assert "--bound" not in found
    assert {"--level", "--scale"} <= set(found)
    assert "--others" not in found
    named = [name for name in ("seed", "set", "hint", "lost") if f"method 'acme-{name}' of another" in caplog.text]
    assert named == ["seed", "set", "hint", "lost"]
    assert parsed("--method", "round-to-nearest")["method"] == "round-to-nearest"


@pytest.mark.usefixtures("outside")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("acme-seed", r"got \['seed'\] of acme_seed. Rename the keyword"),
        ("acme-set", r"got \['set'\] of acme_set. Rename the keyword"),
        ("acme-hint", "must keep the contract of its kind, got NameError"),
        ("acme-lost", "must be a module that can be imported, got ModuleNotFoundError .*Install what it needs"),
    ],
)
def test_one_that_is_asked_for_is_refused(name: str, message: str) -> None:
    for arguments in (["--method", name], ["--bound", "2", f"--method={name}"]):
        with pytest.raises(InvalidInputError, match=message):
            parsed(*arguments)


def test_a_setting_of_the_recipe_itself() -> None:
    plus = chosen_recipe("da-ptq-plus", {}, ["recipe.drift_horizon=chunk", "recipe.folding=consumer"])
    assert plus == replace(da_ptq_plus(), drift_horizon="chunk", folding="consumer")
    assert chosen_recipe("da-ptq-plus", {}, ["recipe.order=compensation-first"]).order == "compensation-first"


@pytest.mark.parametrize(
    ("method", "settings", "assignment", "message"),
    [
        ("da-ptq", {}, "recipe.drift_horizon=chunk", "recipe.drift_horizon must be what the recipe reads, got da-ptq"),
        ("round-to-nearest", {}, "recipe.order=allocation-first", "recipe.order must be what the recipe reads"),
        ("round-to-nearest", {}, "sensitivity.reduction=l1", "sensitivity.reduction must be what the recipe reads"),
        ("da-ptq", {}, "recipe.name=x", "setting of the recipe must be one of .*, got 'name'"),
        ("da-ptq", {}, "recipe.order=first", "order must be one of compensation-first, allocation-first, got 'first'"),
        ("da-ptq", {}, "drift.damping=0.1", "part of --set must be .*Did you mean 'drift-model'"),
        ("da-ptq", {"group_size": 32}, "rounding.group_size=64", "--group-size must be left out where another option"),
    ],
)
def test_what_would_have_no_effect_is_refused(
    method: str, settings: dict[str, Any], assignment: str, message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        chosen_recipe(method, settings, [assignment])


def test_every_setting_says_what_it_means_and_can_be_set() -> None:
    """Each is reached by the text that is listed for its default, unless it must be given."""
    unexplained = "A setting"
    for catalogue, _ in METHOD_PARTS.values():
        for name in catalogue.names():
            for setting in method_settings(method_named(catalogue, name)):
                assert not setting.text.startswith(unexplained), (name, setting)
    for part in PLAIN_PARTS.values():
        assert all(not setting.text.startswith(unexplained) for setting in method_settings(part))
    for setting in recipe_settings():
        assert not setting.text.startswith(unexplained)
        assignment = f"recipe.{setting.name}={as_text(getattr(da_ptq_plus(), setting.name))}"
        assert chosen_recipe("da-ptq-plus", {}, [assignment]) == da_ptq_plus()
    assert {setting.name for setting in recipe_settings()} == {
        "calibration_states", "drift_horizon", "order", "folding", "float_where_faster",
    }  # fmt: skip
