"""Every method of the catalogs keeps the contract of its kind, and the suites notice when one does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from daptq.activation_scaling.conformance import check_activation_scaling
from daptq.activation_scaling.contract import ActivationScaling, InputRanges
from daptq.activation_scaling.static import StaticConfig
from daptq.allocation.conformance import check_allocation
from daptq.allocation.contract import Layers
from daptq.allocation.even import EvenConfig
from daptq.allocation.knapsack import KnapsackConfig
from daptq.allocation.plan import LayerBits
from daptq.allocation.top_fraction import TopFractionConfig
from daptq.catalog import ACTIVATION_SCALINGS, ALLOCATIONS, ROUNDINGS, SENSITIVITIES, Catalog
from daptq.errors import CheckFailedError, RecipeError
from daptq.methods import Needs
from daptq.numerics.quantized_matrix import QuantizedMatrix
from daptq.quantization.recipe import METHOD_STAGES, method_named
from daptq.rounding.conformance import check_rounding
from daptq.rounding.gptq import GptqConfig
from daptq.rounding.nearest import NearestConfig
from daptq.sensitivity.conformance import check_sensitivity
from daptq.sensitivity.contract import Passes
from daptq.sensitivity.phi import SensitivityConfig
from daptq.sensitivity.rounding import RoundingSensitivityConfig

# Settings of methods that have no defaults, and other settings than the defaults.
CONFIGURED: dict[str, list[Any]] = {
    "nearest": [NearestConfig(scale="absmax"), NearestConfig(group_size=32, asymmetric=True)],
    "gptq": [GptqConfig(act_order=True, group_size=32), GptqConfig(asymmetric=True, scale="absmax")],
    "knapsack": [
        KnapsackConfig(budget_bits=4.0),
        KnapsackConfig(budget_mib=3.5),
        KnapsackConfig(budget_ms=3.5),
        KnapsackConfig(bits=(3, 4), budget_bits=3.5),
    ],
    "even": [EvenConfig(budget_bits=3.3)],
    "top-fraction": [TopFractionConfig(by="parameters", scope="all", keep_last_blocks=0)],
    "phi": [SensitivityConfig(reduction="mean")],
    "rounding": [RoundingSensitivityConfig(estimate="first-order", states=7)],
}


def methods_of(catalog: Catalog) -> list[Any]:
    """Every method of a kind with its defaults, where it has them, and with other settings."""
    found: list[Any] = []
    for name in catalog.names():
        kind = method_named(catalog, name)
        other = CONFIGURED.get(name, [])
        try:
            found.append(kind())
        except (TypeError, RecipeError):
            assert other, f"{catalog.kind} {name} has no defaults"
        found += other
    return found


@pytest.mark.parametrize("method", methods_of(ROUNDINGS), ids=repr)
def test_roundings(method: Any) -> None:
    check_rounding(method)


@pytest.mark.parametrize("method", methods_of(ACTIVATION_SCALINGS), ids=repr)
def test_activation_scalings(method: Any) -> None:
    check_activation_scaling(method)


@pytest.mark.parametrize("method", methods_of(ALLOCATIONS), ids=repr)
def test_allocations(method: Any) -> None:
    check_allocation(method)


@pytest.mark.parametrize("method", methods_of(SENSITIVITIES), ids=repr)
def test_sensitivities(method: Any) -> None:
    check_sensitivity(method)


@pytest.mark.parametrize("stage", list(METHOD_STAGES))
def test_every_method_is_of_its_kind(stage: str) -> None:
    catalog, contract = METHOD_STAGES[stage]
    assert catalog.names()
    for name in catalog.names():
        assert issubclass(method_named(catalog, name), contract)


class _IgnoresGroups(NearestConfig):
    def round_weight(self, weight: Tensor, num_bits: int, gram: Tensor | None = None) -> QuantizedMatrix:
        return replace(super().round_weight(weight, num_bits), group_size=0)


class _LeavesTheGrid(NearestConfig):
    def round_weight(self, weight: Tensor, num_bits: int, gram: Tensor | None = None) -> QuantizedMatrix:
        rounded = super().round_weight(weight, num_bits)
        return replace(rounded, integers=rounded.integers.clamp(max=0) - 1)


class _IsRandom(NearestConfig):
    def round_weight(self, weight: Tensor, num_bits: int, gram: Tensor | None = None) -> QuantizedMatrix:
        return super().round_weight(weight + 0.1 * torch.randn(weight.shape), num_bits)


class _LosesAll(NearestConfig):
    def round_weight(self, weight: Tensor, num_bits: int, gram: Tensor | None = None) -> QuantizedMatrix:
        rounded = super().round_weight(weight, num_bits)
        return replace(rounded, integers=torch.zeros_like(rounded.integers))


class _ScalesByZero(StaticConfig):
    def scales(self, ranges: Tensor | None, num_bits: int) -> Tensor:
        assert ranges is not None
        return ranges / 127


class _KeepsTooMuch(StaticConfig):
    def kept_ranges(self, inputs: InputRanges, *, steps: int) -> Tensor:
        return inputs.percentile(self.percentile, steps=steps + 1)


class _DoesNotSayWhatItKeeps(StaticConfig):
    kept_ranges = ActivationScaling.kept_ranges


class _ForgetsALayer(TopFractionConfig):
    def allocate(self, layers: Layers, scores: Any, keep: Any) -> dict[str, LayerBits]:
        return dict(list(super().allocate(layers, scores, keep).items())[1:])


class _KeepsNothing(TopFractionConfig):
    def allocate(self, layers: Layers, scores: Any, keep: Any) -> dict[str, LayerBits]:
        return super().allocate(layers, scores, {})


class _SpendsTwice(EvenConfig):
    def allocate(self, layers: Layers, scores: Any, keep: Any) -> dict[str, LayerBits]:
        return EvenConfig(budget_bits=2 * self.budget_bits).allocate(layers, scores, keep)


@dataclass(frozen=True, kw_only=True)
class _OwesNothing(SensitivityConfig):
    gives_costs: ClassVar[bool] = True

    def scores(self, passes: Passes) -> dict[str, dict[int, float]]:
        return {name: dict.fromkeys(bits, -1.0) for name, bits in passes.bits.items()}


class _ScoresOnce(SensitivityConfig):
    @property
    def needs(self) -> Needs:
        return Needs(data=True)

    def scores(self, passes: Passes) -> dict[str, dict[int, float]]:
        return {name: {4: 1.0} for name in passes.bits}


@pytest.mark.parametrize(
    ("check", "broken", "message"),
    [
        (check_rounding, _IgnoresGroups(group_size=32), "one entry for each group|must have bits, group size"),
        (check_rounding, _LeavesTheGrid(), "must lie between"),
        (check_rounding, _IsRandom(), "same integers and scales"),
        (check_rounding, _LosesAll(), "must lose at most"),
        (check_activation_scaling, _ScalesByZero(), "must be positive and finite"),
        (check_activation_scaling, _KeepsTooMuch(), "ranges of 1 steps must be"),
        (check_allocation, _ForgetsALayer(), "must decide about every layer"),
        (check_allocation, _KeepsNothing(), "must stay in floating point for the reason folding"),
        (check_allocation, _SpendsTwice(budget_bits=3.0), "must keep its budget"),
        (check_sensitivity, _OwesNothing(), "a cost not negative"),
        (check_sensitivity, _ScoresOnce(), "every layer at each of its bits"),
    ],
)
def test_the_suites_notice(check: Callable[[Any], None], broken: Any, message: str) -> None:
    with pytest.raises(Exception, match=message) as caught:
        check(broken)
    assert isinstance(caught.value, CheckFailedError) or "group" in str(caught.value)


def test_a_scaling_that_needs_ranges_must_say_which() -> None:
    with pytest.raises(RecipeError, match="activation scaling static must say what it keeps of the ranges"):
        check_activation_scaling(_DoesNotSayWhatItKeeps())
