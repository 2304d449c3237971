"""A compensation of another distribution, found by its entry point: recipe, JSON, and a whole run."""

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
from daptq.artifacts import read_artifact
from daptq.compensation.contract import CompensationMethod, InterfaceSample
from daptq.errors import RecipeError
from daptq.interfaces.affine import AffineMap
from daptq.interfaces.map_class import MapClass
from daptq.methods import Needs
from daptq.policies.cogact_small import SmallCogACTPolicy
from daptq.policies.contract import Policy
from daptq.recipes import Recipe, da_ptq, quantize


@dataclass(frozen=True, kw_only=True)
class MeanOnly(CompensationMethod):
    """Moves the mean back, by a part of the way."""

    method: ClassVar[str] = "mean-only"

    part: float = 1.0

    @property
    def needs(self) -> Needs:
        return Needs(interface_sensitivities=True)

    def solve(
        self,
        full: InterfaceSample,
        quantized: InterfaceSample,
        sensitivity: Tensor | None,
        map_class: MapClass,
        heads: int,
    ) -> dict[str, AffineMap]:
        assert sensitivity is not None
        assert (map_class, heads) == ("affine", 1)
        shift = self.part * (full.moments.mean - quantized.moments.mean)
        return {"mean": AffineMap(matrix=torch.eye(len(shift), dtype=torch.float64), shift=shift)}


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("acme_mean_only")
    module.COMPENSATION = MeanOnly  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "acme_mean_only", module)
    points = {"daptq.compensation": [EntryPoint("mean-only", "acme_mean_only", "daptq.compensation")]}
    monkeypatch.setattr(catalog, "entry_points", lambda *, group: points.get(group, []))


@pytest.mark.usefixtures("installed")
def test_it_compensates_a_policy(
    cogact: SmallCogACTPolicy, tmp_path: Path, held: Callable[[Policy, int], object]
) -> None:
    recipe = replace(da_ptq(calibration_states=4), compensation=MeanOnly(part=0.5, selection="always"))
    assert Recipe.from_json(recipe.to_json()) == recipe
    folder = quantize(cogact, recipe, data=held(cogact, 4), output=tmp_path / "out")  # type: ignore[arg-type]
    metadata = read_artifact(folder, kind="quantized-policy").metadata
    (entry,) = metadata["folding"]
    assert (entry["map"], entry["kind"]) == ("mean", "consumer")
    assert metadata["recipe"]["compensation"] == {
        "method": "mean-only",
        "max_condition": 1e3,
        "selection": "always",
        "part": 0.5,
    }


def test_what_is_no_compensation_is_refused() -> None:
    with pytest.raises(
        RecipeError, match="compensation must be the settings of one of csrc, paired, or None, got 'csrc'"
    ):
        replace(da_ptq(), compensation="csrc")  # type: ignore[arg-type]
