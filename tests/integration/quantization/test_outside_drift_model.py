"""A drift model of another distribution, found by its entry point: recipe, JSON, and a whole run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from daptq import catalog
from daptq.action_space import END_EFFECTOR_DELTA, ActionSpace
from daptq.artifacts import read_artifact
from daptq.cli.recipe_choice import chosen_recipe
from daptq.drift.contract import DriftModel
from daptq.errors import RecipeError
from daptq.policies.cogact_small import SmallCogACTPolicy
from daptq.policies.contract import Policy
from daptq.quantization.drift_model import models_that_read
from daptq.recipes import Recipe, da_ptq, quantize


@dataclass(frozen=True, kw_only=True)
class GripperOnly(DriftModel):
    """Nothing but the last dimension counts."""

    method: ClassVar[str] = "gripper-only"

    millimetres: float = 11.0

    def refuses(self, space: ActionSpace) -> str | None:
        return None if space[-1].kind == "gripper" else "it reads a gripper, and there is none"

    def weights(self, actions: Tensor, unit: Tensor | None = None, *, space: ActionSpace) -> Tensor:
        width = actions.shape[-1]
        return torch.tensor([0.0] * (width - 1) + [float(width)], dtype=torch.float64)

    def metric(self, chunks: Tensor, states: Tensor | None, *, space: ActionSpace, steps: int) -> Tensor:
        diagonal = torch.zeros(chunks.shape[1:], dtype=torch.float64)
        diagonal[:steps, -1] = self.millimetres**2 / steps
        return torch.diag(diagonal.flatten())


@dataclass(frozen=True, kw_only=True)
class Demanding(GripperOnly):
    """A model that must be told something."""

    method: ClassVar[str] = "demanding"

    metres: float


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    points: dict[str, list[EntryPoint]] = {"daptq.drift_model": []}
    for model in (GripperOnly, Demanding):
        module = ModuleType(f"acme_{model.__name__}")
        module.DRIFT_MODEL = model  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        points["daptq.drift_model"].append(EntryPoint(model.method, module.__name__, "daptq.drift_model"))
    monkeypatch.setattr(catalog, "entry_points", lambda *, group: points.get(group, []))


@pytest.mark.usefixtures("installed")
def test_it_quantizes_a_policy(
    cogact: SmallCogACTPolicy, tmp_path: Path, held: Callable[[Policy, int], object]
) -> None:
    recipe = da_ptq(drift_model="gripper-only", calibration_states=4)
    assert recipe.drift_model == GripperOnly()
    assert Recipe.from_json(recipe.to_json()) == recipe
    folder = quantize(cogact, recipe, data=held(cogact, 4), output=tmp_path / "out")  # type: ignore[arg-type]
    metadata = read_artifact(folder, kind="quantized-policy").metadata
    assert metadata["plan"]["drift_weights"] == [0.0] * 6 + [7.0]
    assert metadata["recipe"]["drift"] == {"method": "gripper-only", "millimetres": 11.0}


@pytest.mark.usefixtures("installed")
def test_its_settings_are_checked_as_those_of_daptqs_own() -> None:
    with pytest.raises(RecipeError, match="drift model gripper-only must have known settings only, got .'metres'"):
        Recipe.from_json({**da_ptq().to_json(), "drift": {"method": "gripper-only", "metres": 1}})


@pytest.mark.usefixtures("installed")
def test_a_model_that_must_be_told_something_is_no_choice_without_it() -> None:
    assert models_that_read(END_EFFECTOR_DELTA) == ("action", "gripper-only", "kinematic", "se3", "virtual-chain")
    with pytest.raises(RecipeError, match="drift model demanding must be complete .*'metres'"):
        da_ptq(drift_model="demanding")
    recipe = chosen_recipe("da-ptq", {"drift_model": "demanding"}, ["drift-model.metres=0.5"])
    assert recipe == replace(da_ptq(), drift_model=Demanding(metres=0.5))
