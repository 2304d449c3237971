"""A policy without an interface is rounded by every recipe that compensates nothing, and refused by any other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from daptq import check_policy, load_policy
from daptq.artifacts import read_artifact
from daptq.catalog import METHODS
from daptq.errors import RecipeError
from daptq.interfaces.contract import Interface
from daptq.policies.contract import Policy
from daptq.quantization.recipe import Recipe
from daptq.recipes import da_ptq, quantize
from tests.integration.quantization.conftest import ChainPolicy


class WithoutInterface(ChainPolicy):
    """A chain that says nowhere where its representation is."""

    def interfaces(self) -> tuple[Interface, ...]:
        return ()


@pytest.fixture
def policy(in_catalog: Callable[[type[Policy]], None]) -> WithoutInterface:
    in_catalog(WithoutInterface)
    return WithoutInterface.tiny()


def recipe_of(method: str) -> Recipe:
    """A recipe of the catalog that compensates nothing."""
    settings = {"da-ptq-plus": {"budget_bits": 8.0, "drift_model": "action"}}.get(method, {})
    recipe: Recipe = getattr(METHODS.load(method), method.replace("-", "_"))(**settings)
    return replace(recipe, compensation=None)


def test_it_keeps_the_contract(policy: WithoutInterface) -> None:
    check_policy(policy)


@pytest.mark.parametrize("method", METHODS.names())
def test_recipes_without_compensation_run(policy: WithoutInterface, method: str, held: Any, tmp_path: Path) -> None:
    out = quantize(policy, recipe_of(method), data=held(policy, 8), output=tmp_path / "out")
    assert read_artifact(out, kind="quantized-policy").metadata["folding"] == []
    batch = policy.example_batch(5)
    with torch.no_grad():
        full, rounded = (
            one.predict_chunk(batch, torch.Generator().manual_seed(1)) for one in (policy, load_policy(out))
        )
    assert 0 < float((rounded - full).norm() / full.norm()) < 0.3


@pytest.mark.parametrize("change", [{}, {"interfaces": ()}])
def test_recipes_with_compensation_refuse_it(
    policy: WithoutInterface, change: dict[str, Any], held: Any, tmp_path: Path
) -> None:
    message = "policy chain must have a perception-to-action interface to be compensated, got none"
    with pytest.raises(RecipeError, match=message):
        quantize(policy, replace(da_ptq(), **change), data=held(policy, 8), output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
