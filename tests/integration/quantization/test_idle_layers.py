"""Layers that run although nothing reads them: rounded as far as the recipe rounds, never calibrated, never scored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import daptq
from daptq.activation_scaling.static import StaticConfig
from daptq.allocation.even import EvenConfig
from daptq.allocation.resources import weight_bytes
from daptq.artifacts import read_artifact
from daptq.observations import STATE
from daptq.policies.conformance import check_policy
from daptq.policies.contract import Batch, Block, Condition
from daptq.quantization.recipe import Recipe, RoleBits
from daptq.recipes import da_ptq, da_ptq_plus, round_to_nearest
from daptq.rounding.gptq import GptqConfig
from daptq.rounding.nearest import round_weight
from daptq.rounding.transform import TransformConfig
from tests.integration.quantization.conftest import ChainPolicy

STATES = 24
IDLE = ("spare", "spare_head")


class IdleChain(ChainPolicy):
    """A chain with two layers that nothing reads; what they read is not even a number, so nobody may look at it."""

    def __init__(self) -> None:
        super().__init__()
        self.state_dim, self.language[0] = 7, nn.Linear(7, 16)
        self.spare, self.spare_head = nn.Linear(10, 6), nn.Linear(12, 64)

    def blocks(self) -> tuple[Block, ...]:
        language, *head = super().blocks()
        spare = Block(name="spare", role="language"), Block(name="spare_head", role="action_head")
        return language, spare[0], *head, spare[1]

    def idle_layers(self) -> tuple[str, ...]:
        return IDLE

    def condition(self, batch: Batch) -> Condition:
        (representation,) = super().condition(batch)
        self.spare(torch.full_like(representation, torch.nan))
        return (representation,)

    def head(self, representation: Tensor, noisy: Tensor) -> Tensor:
        self.spare_head(torch.full((len(noisy), 12), torch.nan))
        return super().head(representation, noisy)

    def example_batch(self, seed: int) -> Batch:
        state = torch.randn(8, 7, generator=torch.Generator().manual_seed(seed))
        return {**super().example_batch(seed), STATE: state}


def recipes() -> dict[str, tuple[Recipe, tuple[int, int]]]:
    """Recipes, and the fewest bits that each may give to a layer of the language model and of the action head."""
    nearest, da, plus = round_to_nearest(), da_ptq(calibration_states=STATES), da_ptq_plus(calibration_states=STATES)
    everywhere = RoleBits.everywhere(4)
    calibrated = replace(nearest, calibration_states=STATES)
    return {
        "nearest": (nearest, (4, 4)),
        "even": (replace(nearest, weight_bits=everywhere, allocation=EvenConfig(budget_bits=6.0)), (2, 2)),
        "da-ptq": (da, (4, 4)),
        "da-ptq-gptq": (replace(da, rounding=GptqConfig()), (4, 4)),
        "da-ptq-gptq-absmax": (replace(da, rounding=GptqConfig(scale="absmax")), (4, 4)),
        "da-ptq-verified": (replace(da, verification=plus.verification, sensitivity=plus.sensitivity), (4, 2)),
        "plus": (da_ptq_plus(calibration_states=STATES, budget_bits=6.0), (2, 2)),
        "plus-compensation-first": (
            replace(da_ptq_plus(calibration_states=STATES, budget_bits=6.0), order="compensation-first"),
            (2, 2),
        ),
        "smooth-static": (
            replace(
                calibrated,
                transform=TransformConfig(smoothing=0.5),
                activation_scaling=StaticConfig(),
            ),
            (4, 4),
        ),
    }


@pytest.fixture
def idle_chain() -> IdleChain:
    policy = IdleChain.tiny(5)
    nn.init.normal_(policy.null)
    return policy


def test_the_chain_keeps_the_contract(idle_chain: IdleChain) -> None:
    check_policy(idle_chain)


@pytest.mark.parametrize("name", list(recipes()))
def test_idle_layers_get_the_fewest_bits_and_no_score(
    idle_chain: IdleChain, tmp_path: Path, held: Any, name: str
) -> None:
    recipe, fewest = recipes()[name]
    out = daptq.quantize(idle_chain, recipe, data=held(idle_chain, 3), output=tmp_path / "out")
    artifact = read_artifact(out, kind="quantized-policy")
    plan = {entry["name"]: entry for entry in artifact.metadata["plan"]["layers"]}
    assert set(plan) == set(idle_chain.linear_layers())
    assert [entry["reason"] == "idle" for entry in plan.values()] == [path in IDLE for path in plan]
    for path, bits in zip(IDLE, fewest, strict=True):
        assert (plan[path]["num_bits"], plan[path]["score"]) == (bits, None)
        weight = idle_chain.get_parameter(f"{path}.weight").detach()
        expected = round_weight(weight, bits, scale=recipe.rounding.scale)  # type: ignore[attr-defined]
        assert torch.equal(artifact.tensor(f"{path}.weight_scale").flatten(), expected.scale.flatten())
        assert f"{path}.activation_scale" not in artifact.tensor_names
        assert f"{path}.input_scale" not in artifact.tensor_names


def test_an_idle_layer_of_a_role_in_bfloat16_stays_in_it(idle_chain: IdleChain, tmp_path: Path) -> None:
    recipe = replace(round_to_nearest(), weight_bits=RoleBits(language=None))
    out = daptq.quantize(idle_chain, recipe, output=tmp_path / "out")
    layers = read_artifact(out, kind="quantized-policy").metadata["layers"]
    assert [layers[path]["num_bits"] for path in IDLE] == [16, 4]


@pytest.mark.parametrize("name", ["even", "plus"])
def test_all_layers_together_keep_to_the_budget(idle_chain: IdleChain, tmp_path: Path, held: Any, name: str) -> None:
    """Idle layers use it up, and what they leave of their share goes to the others."""
    out = daptq.quantize(idle_chain, recipes()[name][0], data=held(idle_chain, 3), output=tmp_path / "out")
    plan = read_artifact(out, kind="quantized-policy").metadata["plan"]["layers"]
    layers: dict[str, Any] = {entry["name"]: idle_chain.get_submodule(entry["name"]) for entry in plan}
    needed = {
        entry["name"]: weight_bytes(
            layers[entry["name"]].out_features, layers[entry["name"]].in_features, entry["num_bits"], group_size=0
        )
        for entry in plan
    }
    weights = {path: layer.weight.numel() for path, layer in layers.items()}
    assert sum(needed.values()) <= 6.0 * sum(weights.values()) / 8
    others = set(layers) - set(IDLE)
    assert sum(needed[path] for path in others) > 6.0 * sum(weights[path] for path in others) / 8


def test_calibrating_such_a_layer_would_be_noticed(idle_chain: IdleChain, tmp_path: Path, held: Any) -> None:
    """The guard of this file: were the layers not declared, what they read would spoil the run."""
    idle_chain.idle_layers = tuple  # type: ignore[method-assign]
    recipe, _ = recipes()["da-ptq-gptq"]
    with pytest.raises((daptq.DaptqError, RuntimeError)):
        daptq.quantize(idle_chain, recipe, data=held(idle_chain, 3), output=tmp_path / "out")
