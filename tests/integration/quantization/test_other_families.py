"""Families unlike CogACT, joint attention with flow matching and action tokens, go through every recipe to the end."""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch

import daptq
from daptq import catalog
from daptq.artifacts import read_artifact
from daptq.audit.audit import audit
from daptq.catalog import METHODS
from daptq.errors import RecipeError
from daptq.policies.contract import Policy
from daptq.quantization.recipe import Recipe
from tests.families import joint_flow, token_actions

FAMILIES = {"joint-flow": joint_flow, "token-actions": token_actions}
families = pytest.mark.parametrize("family", sorted(FAMILIES))


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the families known, as another distribution would."""
    points = [EntryPoint(name, module.__name__, "daptq.policy") for name, module in FAMILIES.items()]
    for module in FAMILIES.values():
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(catalog, "entry_points", lambda *, group: points if group == "daptq.policy" else [])


def policy_of(family: str) -> Policy:
    policy: Policy = FAMILIES[family].POLICY.tiny(seed=3)
    return policy


def recipe_of(method: str) -> Recipe:
    """A recipe of the catalog that needs no end-effector."""
    factory = getattr(METHODS.load(method), method.replace("-", "_"))
    settings = {} if method == "round-to-nearest" else {"drift_model": "action", "calibration_states": 24}
    recipe: Recipe = factory(**settings)
    return recipe


def metadata(folder: Path) -> dict[str, Any]:
    return dict(read_artifact(folder, kind="quantized-policy").metadata)


def chunk(policy: Policy) -> torch.Tensor:
    with torch.inference_mode():
        return policy.predict_chunk(policy.example_batch(77), torch.Generator().manual_seed(5))


@families
def test_the_family_keeps_the_contract(family: str) -> None:
    daptq.check_policy(policy_of(family))


@families
@pytest.mark.parametrize("method", METHODS.names())
def test_every_recipe_to_the_end(family: str, method: str, held: Any, tmp_path: Path) -> None:
    policy, recipe = policy_of(family), recipe_of(method)
    out = daptq.quantize(policy, recipe, data=held(policy, 10), output=tmp_path / "out")
    quantized, stranger = daptq.load_policy(out), FAMILIES[family].POLICY.tiny(seed=4)
    errors = [float(((chunk(one) - chunk(policy)) / policy.action_unit).abs().mean()) for one in (quantized, stranger)]
    assert 0 <= errors[0] < 0.5 * errors[1]
    assert torch.equal(chunk(daptq.load_policy(out)), chunk(quantized))
    bits = {layer["name"]: layer["num_bits"] for layer in metadata(out)["plan"]["layers"]}
    assert set(bits) == set(policy.linear_layers())
    assert any(count < 16 for count in bits.values())
    assert audit(quantized, out).differences == ()


def test_idle_layers_get_the_least_bits_and_maps_fold_into_attention(held: Any, tmp_path: Path) -> None:
    policy, recipe = policy_of("joint-flow"), recipe_of("da-ptq-plus")
    out = daptq.quantize(policy, recipe, data=held(policy, 10), output=tmp_path / "out")
    described = metadata(out)
    bits = {layer["name"]: layer["num_bits"] for layer in described["plan"]["layers"]}
    assert {bits[name] for name in policy.idle_layers()} == {2}
    folded = {entry["interface"]: entry["kind"] for entry in described["folding"]}
    assert set(folded) == {interface.name for interface in policy.interfaces()}
    assert {"attention-keys", "attention-values", "consumer"} & {
        kind.removesuffix("-rounded") for kind in folded.values()
    }


def test_maps_help_a_policy_with_joint_attention(held: Any, tmp_path: Path) -> None:
    policy, recipe = policy_of("joint-flow"), recipe_of("da-ptq-plus")
    without = daptq.quantize(
        policy, replace(recipe, compensation=None), data=held(policy, 10), output=tmp_path / "without"
    )
    folded = daptq.quantize(policy, recipe, data=held(policy, 10), output=tmp_path / "folded")
    decisions = [entry for entry in metadata(folded)["folding"] if entry["map"] != "none"]
    assert decisions
    for entry in decisions:
        assert entry["errors"][entry["map"]] < entry["errors"]["none"]
    assert not torch.equal(chunk(daptq.load_policy(without)), chunk(daptq.load_policy(folded)))


@families
def test_a_drift_model_of_another_action_space_is_refused(family: str, held: Any, tmp_path: Path) -> None:
    policy = policy_of(family)
    recipe = daptq.recipes.da_ptq(drift_model="se3")
    if family == "token-actions":  # Its actions are what se3 reads.
        daptq.quantize(policy, recipe, data=held(policy, 10), output=tmp_path / "out")
        return
    with pytest.raises(RecipeError, match="action"):
        daptq.quantize(policy, recipe, data=held(policy, 10), output=tmp_path / "out")
