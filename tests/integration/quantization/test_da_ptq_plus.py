"""The stages of daptq's own method: budgets, costs, sensitivities, verification, transforms; and kills."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from daptq.activation_scaling.per_step import PerStepConfig
from daptq.allocation.even import EvenConfig
from daptq.allocation.knapsack import KnapsackConfig
from daptq.allocation.verification import VerificationConfig
from daptq.artifacts import read_artifact
from daptq.catalog import DRIFT_MODELS
from daptq.errors import RecipeError
from daptq.interfaces.contract import Interface, Tap
from daptq.interfaces.into_consumers import IntoConsumers
from daptq.interfaces.into_norm import IntoNorm
from daptq.layers.quantized_linear import QuantizedLinear
from daptq.packing.checkpoint import load_policy
from daptq.policies.cogact_small import SmallCogACTPolicy
from daptq.quantization.allocation import float_linear, layer_resources
from daptq.quantization.profiling import groups
from daptq.quantization.recipe import RoleActivationBits, RoleBits
from daptq.recipes import Recipe, da_ptq, da_ptq_plus, quantize, round_to_nearest
from daptq.rounding.gptq import GptqConfig
from daptq.rounding.transform import TransformConfig
from daptq.sensitivity.rounding import RoundingSensitivityConfig


def silent(*_: object) -> None:
    """No progress."""


def never(*_: object) -> None:
    """No work was to be done."""
    pytest.fail("work was done")


def metadata(folder: Path) -> dict[str, Any]:
    return dict(read_artifact(folder, kind="quantized-policy").metadata)


def small(**settings: Any) -> Recipe:
    """The method with few states."""
    recipe = da_ptq_plus(**settings)
    return replace(recipe, sensitivity=RoundingSensitivityConfig(states=8))


def test_the_whole_policy_is_quantized_within_the_budget(cogact: SmallCogACTPolicy, tmp_path: Path, held: Any) -> None:
    recipe = small(budget_bits=4.5)
    out = quantize(cogact, recipe, data=held(cogact, 4), output=tmp_path / "out")
    plan = metadata(out)["plan"]
    bits = {layer["name"]: layer["num_bits"] for layer in plan["layers"]}
    assert set(bits) == set(cogact.linear_layers())
    assert len(set(bits.values())) > 1
    sizes = layer_resources(cogact, recipe, dict.fromkeys(bits, (2, 3, 4, 8, 16)), per="weight bytes")
    weights = sum(float_linear(cogact, name).weight.numel() for name in bits)
    used = sum(sizes[name][b] for name, b in bits.items())
    assert 0.9 * 4.5 * weights / 8 < used <= 4.5 * weights / 8
    assert plan["verification"]["holds"]
    assert plan["verification"]["measured"] > 0
    quantized = load_policy(out)
    assert torch.isfinite(quantized.predict_chunk(cogact.example_batch(9), torch.Generator().manual_seed(0))).all()


@pytest.mark.parametrize("order", ["allocation-first", "compensation-first"])
def test_more_budget_drifts_less_in_either_order(
    cogact: SmallCogACTPolicy, tmp_path: Path, held: Any, order: Any
) -> None:
    measured = []
    for budget in (3.2, 6.0, 10.0):
        recipe = replace(small(budget_bits=budget), order=order)
        out = quantize(cogact, recipe, data=held(cogact, 4), output=tmp_path / str(budget))
        measured.append(metadata(out)["plan"]["verification"]["measured"])
    assert measured[0] > measured[1] > measured[2]


def test_a_budget_in_mib_counts_the_bytes_of_the_file(cogact: SmallCogACTPolicy, tmp_path: Path, held: Any) -> None:
    budget = 0.12
    out = quantize(cogact, small(budget_mib=budget), data=held(cogact, 2), output=tmp_path / "out")
    artifact = read_artifact(out, kind="quantized-policy")
    layers = tuple(f"{name}." for name in cogact.linear_layers())
    stored = sum(t.nbytes for name, t in artifact.tensors() if name.startswith(layers))
    assert 0.9 * budget * 2**20 < stored <= budget * 2**20


def test_a_budget_in_milliseconds_is_spent_by_measured_times(
    cogact: SmallCogACTPolicy, tmp_path: Path, held: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = {2: 1.0, 3: 2.0, 4: 3.0, 8: 4.0, 16: 5.0}
    monkeypatch.setattr(
        "daptq.quantization.layer_times.measure_layer_times",
        lambda shapes, bits, _, **grid: {s: {b: times[b] for b in bits} for s in shapes},
    )
    count = len(cogact.linear_layers())
    out = quantize(cogact, small(budget_ms=2.5 * count), data=held(cogact, 2), output=tmp_path / "out")
    spent = sum(times[layer["num_bits"]] for layer in metadata(out)["plan"]["layers"])
    assert 2.4 * count < spent <= 2.5 * count


def test_a_budget_that_no_plan_keeps_is_refused_before_any_work(
    cogact: SmallCogACTPolicy, tmp_path: Path, held: Any
) -> None:
    for recipe in (
        small(budget_bits=1.0),
        small(budget_mib=0.001),
        replace(round_to_nearest(), allocation=EvenConfig(budget_bits=1.0)),
    ):
        with pytest.raises(RecipeError, match="budget_(bits|mib) must be at least"):
            quantize(cogact, recipe, data=held(cogact, 2), output=tmp_path / "out", progress=never)
    assert list(tmp_path.iterdir()) == []


def test_the_gate_promotes_layers_and_says_which(cogact: SmallCogACTPolicy, tmp_path: Path, held: Any) -> None:
    loose = small(budget_bits=3.0)
    before = metadata(quantize(cogact, loose, data=held(cogact, 2), output=tmp_path / "before"))["plan"]
    gate = 0.9 * before["verification"]["measured"]
    # Without an allocation promotions have no budget.
    free = replace(
        loose,
        weight_bits=RoleBits.everywhere(2),
        allocation=None,
        verification=VerificationConfig(gate_mm=gate, max_rounds=200),
    )
    after = metadata(quantize(cogact, free, data=held(cogact, 2), output=tmp_path / "after"))["plan"]["verification"]
    assert after["holds"]
    assert after["measured"] <= gate
    assert after["steps"]
    assert all(step["after_bits"] != step["before_bits"] and step["reason"] for step in after["steps"])


def test_a_gate_out_of_reach_is_reported(cogact: SmallCogACTPolicy, tmp_path: Path, held: Any) -> None:
    recipe = replace(small(budget_bits=3.0), verification=VerificationConfig(gate_mm=0.0, max_rounds=3))
    record = metadata(quantize(cogact, recipe, data=held(cogact, 2), output=tmp_path / "out"))["plan"]["verification"]
    assert not record["holds"]
    assert record["gate"] == 0.0


def test_even_bits_keep_to_the_budget_without_data(cogact: SmallCogACTPolicy, tmp_path: Path) -> None:
    recipe = replace(round_to_nearest(), weight_bits=RoleBits.everywhere(4), allocation=EvenConfig(budget_bits=3.4))
    bits = [x["num_bits"] for x in metadata(quantize(cogact, recipe, output=tmp_path / "out"))["plan"]["layers"]]
    assert {2, 3} <= set(bits)


class KilledError(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("stage", ["profile", "statistics", "ranges", "round", "score", "verify", "measure", "write"])
def test_a_run_that_ends_in_any_stage_continues_to_the_same_bytes(
    cogact: SmallCogACTPolicy, tmp_path: Path, held: Any, stage: str, whole: Callable[[Path], dict[str, bytes]]
) -> None:
    recipe = everything()

    def progress(_done: int, _total: int, name: str) -> None:
        if name == stage:
            raise KilledError

    with pytest.raises(KilledError):
        quantize(cogact, recipe, data=held(cogact, 4), output=tmp_path / "out", progress=progress)
    assert not (tmp_path / "out").exists()
    quantize(cogact, recipe, data=held(cogact, 4), output=tmp_path / "out", progress=silent)
    assert tensors_of(tmp_path / "out") == whole(tmp_path)


def test_a_budget_does_not_count_a_role_that_stays_in_bfloat16(
    cogact: SmallCogACTPolicy, tmp_path: Path, held: Any
) -> None:
    recipe = replace(small(budget_bits=4.5, gate_mm=1e-4), weight_bits=RoleBits(vision=None, connector=4))
    plan = metadata(quantize(cogact, recipe, data=held(cogact, 2), output=tmp_path / "out"))["plan"]
    vision = {name for name, role in cogact.linear_layers().items() if role == "vision"}
    assert {layer["num_bits"] for layer in plan["layers"] if layer["name"] in vision} == {16}
    assert not plan["verification"]["holds"]


def everything() -> Recipe:
    """A recipe with every stage."""
    return replace(
        small(budget_bits=4.5, activation_bits=4),
        allocation=KnapsackConfig(bits=(3, 4, 8), budget_bits=4.5),
        transform=TransformConfig(rotation_block=16, smoothing=0.3),
        activation_scaling=PerStepConfig(),
    )


def tensors_of(folder: Path) -> dict[str, bytes]:
    manifest = json.loads((folder / "manifest.json").read_text())
    plan = {"plan": json.dumps(manifest["metadata"]["plan"]).encode()}
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))} | plan


@pytest.fixture(scope="module")
def whole(cogact: SmallCogACTPolicy, held: Any) -> Callable[[Path], dict[str, bytes]]:
    cache: dict[str, bytes] = {}

    def run(folder: Path) -> dict[str, bytes]:
        if not cache:
            cache.update(tensors_of(quantize(cogact, everything(), data=held(cogact, 4), output=folder / "whole")))
        return cache

    return run


@pytest.mark.parametrize(
    "transform",
    [
        TransformConfig(rotation_block=16),
        TransformConfig(smoothing=0.5),
        TransformConfig(rotation_block=16, smoothing=0.5),
    ],
)
def test_transforms_leave_the_function_as_it_was(
    cogact: SmallCogACTPolicy, tmp_path: Path, held: Any, transform: TransformConfig
) -> None:
    """With 8 bits only rounding errors are left, of the size that they have without a transform."""
    errors = {}
    for label, config in (("plain", TransformConfig()), ("transformed", transform)):
        recipe = replace(
            round_to_nearest(weight_bits=8), transform=config, rounding=GptqConfig(), weight_bits=RoleBits.everywhere(8)
        )
        quantized = load_policy(quantize(cogact, recipe, data=held(cogact, 2), output=tmp_path / label))
        with torch.no_grad():
            exact = cogact.denoised_chunk(cogact.example_batch(7), torch.Generator().manual_seed(1))
            rounded = quantized.denoised_chunk(cogact.example_batch(7), torch.Generator().manual_seed(1))
        errors[label] = float((rounded - exact).norm() / exact.norm())
        layers = [m for m in quantized.modules() if isinstance(m, QuantizedLinear)]
        assert any(m.rotation_block for m in layers) is (config.rotation_block > 0)
        assert all((m.input_scale is not None) is (config.smoothing > 0) for m in layers)
    assert 0 < errors["transformed"] < 3 * errors["plain"] + 1e-3


def test_activation_bits_and_scales_reach_the_layers(cogact: SmallCogACTPolicy, tmp_path: Path, held: Any) -> None:
    recipe = replace(
        round_to_nearest(),
        activation_bits=RoleActivationBits(language=4, action_head=8),
        activation_scaling=PerStepConfig(),
    )
    quantized = load_policy(quantize(cogact, recipe, data=held(cogact, 2), output=tmp_path / "out"))
    bits = {"language": 4, "action_head": 8}
    lengths = {"language": 1, "action_head": cogact.denoising_steps}
    for name, role in quantized.linear_layers().items():
        layer = quantized.get_submodule(name)
        if isinstance(layer, QuantizedLinear):
            assert layer.activation_bits == bits[role]
            assert layer.activation_scale is not None
            assert len(layer.activation_scale) == lengths[role]
    chunk = quantized.predict_chunk(cogact.example_batch(3), torch.Generator().manual_seed(0))
    assert torch.isfinite(chunk).all()


def test_a_budget_needs_costs() -> None:
    with pytest.raises(RecipeError, match="sensitivity must be 'rounding' for the allocation knapsack, got 'phi'"):
        replace(round_to_nearest(), allocation=KnapsackConfig(budget_bits=4.0))
    with pytest.raises(RecipeError, match="sensitivity must be 'rounding' for a verification"):
        replace(round_to_nearest(), verification=VerificationConfig())


def test_recipes_with_every_method_survive_json() -> None:
    for drift in DRIFT_MODELS.names():
        recipe = replace(da_ptq_plus(drift_model=drift), transform=TransformConfig(rotation_block=16))
        assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe
    even = replace(round_to_nearest(), allocation=EvenConfig(budget_bits=3.0))
    assert Recipe.from_json(json.loads(json.dumps(even.to_json()))) == even


def test_interfaces_of_the_recipe_take_the_place_of_the_familys(
    cogact: SmallCogACTPolicy, tmp_path: Path, held: Any
) -> None:
    """Between two layers of the projector: an interface with many tokens to a state."""
    inner = Interface("inner", Tap("projector.fc2"), (IntoConsumers(("projector.fc2",)),))
    for recipe in (da_ptq_plus(), da_ptq()):
        own = replace(recipe, interfaces=(inner,), sensitivity=small().sensitivity, allocation=None, verification=None)
        folding = metadata(quantize(cogact, own, data=held(cogact, 4), output=tmp_path / recipe.name))["folding"]
        assert [entry["interface"] for entry in folding] == ["inner"]
    assert [interface.name for interface in cogact.interfaces()] != ["inner"]


def test_an_interface_that_the_policy_does_not_have_is_refused(
    cogact: SmallCogACTPolicy, tmp_path: Path, held: Any
) -> None:
    (default,) = cogact.interfaces()
    folds = (IntoConsumers(("nowhere",)), IntoConsumers(("projector",)), IntoConsumers((), ("y",)), IntoNorm("x"))
    for change in ({"tap": Tap("x")}, *({"folds": (fold,)} for fold in folds)):
        recipe = replace(da_ptq(), interfaces=(replace(default, **change),))  # type: ignore[arg-type]
        with pytest.raises(RecipeError, match="interfaces must name layers, modules and parameters of the policy"):
            quantize(cogact, recipe, data=held(cogact, 2), output=tmp_path / "out", progress=never)
    twice = replace(da_ptq(), interfaces=(default, default))
    with pytest.raises(RecipeError, match="must have a name each"):
        quantize(cogact, twice, data=held(cogact, 2), output=tmp_path / "out", progress=never)
    assert list(tmp_path.iterdir()) == []


def test_many_passes_under_little_memory_give_the_policy_of_one_pass(
    cogact: SmallCogACTPolicy, tmp_path: Path, held: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = quantize(cogact, small(budget_bits=4.5), data=held(cogact, 2), output=tmp_path / "once")
    passes: list[int] = []

    def tiny_groups(sizes: dict[str, int], _: int) -> list[tuple[str, ...]]:
        parts = groups(sizes, 2 * max(sizes.values()))
        passes.append(len(parts))
        return parts

    monkeypatch.setattr("daptq.quantization.statistics.groups", tiny_groups)
    monkeypatch.setattr("daptq.quantization.scores.groups", tiny_groups)
    often = quantize(cogact, small(budget_bits=4.5), data=held(cogact, 2), output=tmp_path / "often")
    assert len(passes) == 2
    assert min(passes) >= 3
    first, second = (dict(read_artifact(folder, kind="quantized-policy").tensors()) for folder in (once, often))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
