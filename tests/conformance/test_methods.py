"""Every method of the catalogs keeps the contract of its kind, and the suites notice when one does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from daptq.action_space import END_EFFECTOR_DELTA, ActionDimension, ActionSpace
from daptq.activation_scaling.conformance import check_activation_scaling
from daptq.activation_scaling.contract import ActivationScaling, InputRanges
from daptq.activation_scaling.static import StaticConfig
from daptq.allocation.conformance import check_allocation
from daptq.allocation.contract import Layers
from daptq.allocation.even import EvenConfig
from daptq.allocation.knapsack import KnapsackConfig
from daptq.allocation.plan import LayerBits
from daptq.allocation.top_fraction import TopFractionConfig
from daptq.catalog import (
    ACTIVATION_SCALINGS,
    ALLOCATIONS,
    COMPENSATIONS,
    DRIFT_MODELS,
    ROUNDINGS,
    SENSITIVITIES,
    Catalog,
)
from daptq.compensation.conformance import check_compensation
from daptq.compensation.contract import InterfaceSample
from daptq.compensation.csrc import CsrcConfig
from daptq.compensation.paired import PairedConfig
from daptq.drift.conformance import check_drift_model
from daptq.drift.models.action import ActionConfig
from daptq.drift.models.kinematic import KinematicConfig
from daptq.drift.models.se3 import Se3Config
from daptq.errors import CheckFailedError, RecipeError
from daptq.interfaces.affine import AffineMap
from daptq.methods import Needs
from daptq.numerics.quantized_matrix import QuantizedMatrix
from daptq.quantization.recipe import METHOD_PARTS, method_named
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
    "csrc": [CsrcConfig(cross_channel=False)],
    "paired": [PairedConfig(weighted=False), PairedConfig(ridge=0.0)],
    "se3": [Se3Config(frame="tool", half_gap=0.02)],
    "kinematic": [KinematicConfig(half_gap=0.02, state="rest")],
}

HOME = torch.tensor([0.24, 0.0, 0.15, 0.0, 0.0, 0.3, 1.0], dtype=torch.float64)


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


@pytest.mark.parametrize("method", methods_of(COMPENSATIONS), ids=repr)
def test_compensations(method: Any) -> None:
    check_compensation(method)


@pytest.mark.parametrize("model", methods_of(DRIFT_MODELS), ids=repr)
def test_drift_models(model: Any) -> None:
    check_drift_model(model, state=HOME)


def joints(kind: Any, count: int) -> ActionSpace:
    """Joints of an arm, and a gripper."""
    return (*(ActionDimension(kind=kind, unit="rad") for _ in range(count)), END_EFFECTOR_DELTA[-1])


@pytest.mark.parametrize(
    ("model", "space"),
    [
        (KinematicConfig(action_space="joint"), joints("joint", 6)),
        (KinematicConfig(action_space="joint-delta", state="joints"), joints("joint-delta", 6)),
        (ActionConfig(), joints("joint", 7) * 2),
        (ActionConfig(), (ActionDimension(kind="plane", unit="px"),) * 2),
    ],
)
def test_drift_models_of_other_spaces(model: Any, space: ActionSpace) -> None:
    check_drift_model(model, space, state=torch.zeros(6, dtype=torch.float64))


@pytest.mark.parametrize("part", list(METHOD_PARTS))
def test_every_method_is_of_its_kind(part: str) -> None:
    catalog, contract = METHOD_PARTS[part]
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
        return Needs(data=True, gradients=True)

    def scores(self, passes: Passes) -> dict[str, dict[int, float]]:
        return {name: {4: 1.0} for name in passes.bits}


class _WatchesUndeclared(SensitivityConfig):
    @property
    def needs(self) -> Needs:
        return Needs(data=True)


class _TakesGradientsUndeclared(_WatchesUndeclared):
    def watch_loss(self, weights: Any) -> Any:
        return None

    def scores(self, passes: Passes) -> dict[str, dict[int, float]]:
        with passes.gradients(tuple(passes.bits)) as (weights, _):
            return {n: dict.fromkeys(bits, float(weights[n].detach().norm())) for n, bits in passes.bits.items()}


class _WeighsByChunk(ActionConfig):
    def metric(self, chunks: Tensor, states: Tensor | None, *, space: ActionSpace, steps: int) -> Tensor:
        return super().metric(chunks, states, space=space, steps=steps) * (1 + chunks[0].abs().sum())


class _CountsWhatIsNotExecuted(ActionConfig):
    def metric(self, chunks: Tensor, states: Tensor | None, *, space: ActionSpace, steps: int) -> Tensor:
        super().metric(chunks, states, space=space, steps=steps)
        return super().metric(chunks, states, space=space, steps=chunks.shape[1])


class _IsNotSymmetric(ActionConfig):
    def metric(self, chunks: Tensor, states: Tensor | None, *, space: ActionSpace, steps: int) -> Tensor:
        metric = super().metric(chunks, states, space=space, steps=steps)
        metric[0, 1] += 1e-3
        return metric


class _IsNegative(ActionConfig):
    def metric(self, chunks: Tensor, states: Tensor | None, *, space: ActionSpace, steps: int) -> Tensor:
        return -super().metric(chunks, states, space=space, steps=steps)


class _ReadsAnything(Se3Config):
    def metric(self, chunks: Tensor, states: Tensor | None, *, space: ActionSpace, steps: int) -> Tensor:
        if space != END_EFFECTOR_DELTA:
            return torch.eye(chunks.shape[1] * chunks.shape[2]).double()
        return super().metric(chunks, states, space=space, steps=steps)


class _WeighsWithoutMean(ActionConfig):
    def weights(self, actions: Tensor, unit: Tensor | None = None, *, space: ActionSpace) -> Tensor:
        return 2 * super().weights(actions, unit, space=space)


Maps = dict[str, AffineMap]


class _OffersNothing(CsrcConfig):
    def solve(self, *given: Any) -> Maps:
        super().solve(*given)
        return {}


class _LeavesTheClass(CsrcConfig):
    def solve(self, full: InterfaceSample, quantized: InterfaceSample, sensitivity: Any, *_: Any) -> Maps:
        return super().solve(full, quantized, sensitivity, "affine", 1)


class _ForgetsTheMean(CsrcConfig):
    def solve(self, *given: Any) -> Maps:
        maps = super().solve(*given)
        return {n: AffineMap(matrix=one.matrix, shift=torch.zeros_like(one.shift)) for n, one in maps.items()}


class _AlwaysMoves(CsrcConfig):
    def solve(self, full: InterfaceSample, quantized: InterfaceSample, *given: Any) -> Maps:
        maps = super().solve(full, quantized, *given)
        same = torch.equal(full.rows, quantized.rows)
        return {n: AffineMap(matrix=one.matrix * (1 + 0.01 * same), shift=one.shift) for n, one in maps.items()}


class _DoesWithoutH(PairedConfig):
    def solve(self, full: InterfaceSample, quantized: InterfaceSample, sensitivity: Any, *given: Any) -> Maps:
        weight = torch.eye(full.rows.shape[1]).double() if sensitivity is None else sensitivity
        return super().solve(full, quantized, weight, *given)


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
        (check_sensitivity, _WatchesUndeclared(), "needs of a method that watches the loss"),
        (check_sensitivity, _TakesGradientsUndeclared(), "needs of a method that takes them"),
        (check_drift_model, _WeighsByChunk(), "must not change with order"),
        (check_drift_model, _CountsWhatIsNotExecuted(), "must be zero for later actions"),
        (check_drift_model, _IsNotSymmetric(), "must be symmetric"),
        (check_drift_model, _IsNegative(), "positive semi-definite"),
        (check_drift_model, _ReadsAnything(), "an action space that the model refuses"),
        (check_drift_model, _WeighsWithoutMean(), "must have the mean 1"),
        (check_drift_model, KinematicConfig(action_space="joint"), "must read 3 ee-position-delta"),
        (check_compensation, _OffersNothing(), "names other than none"),
        (check_compensation, _LeavesTheClass(), "must be of this class"),
        (check_compensation, _ForgetsTheMean(), "must bring the means together"),
        (check_compensation, _AlwaysMoves(), "must leave equal representations alone"),
        (check_compensation, _DoesWithoutH(), "a missing sensitivity must be refused"),
    ],
)
def test_the_suites_notice(check: Callable[[Any], None], broken: Any, message: str) -> None:
    with pytest.raises(Exception, match=message) as caught:
        check(broken)
    assert isinstance(caught.value, CheckFailedError) or "group" in str(caught.value)


def test_a_scaling_that_needs_ranges_must_say_which() -> None:
    with pytest.raises(RecipeError, match="activation scaling static must say what it keeps of the ranges"):
        check_activation_scaling(_DoesNotSayWhatItKeeps())
