"""Costs and sensitivities of layers against differences of the drift itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor

from daptq.allocation.knapsack import KnapsackConfig
from daptq.artifacts import read_artifact, write_artifact
from daptq.policies.contract import Policy
from daptq.quantization.allocation import float_linear
from daptq.quantization.profile import ProfileStage
from daptq.quantization.profiling import Calibration
from daptq.quantization.rounding import RoundedLayers, Rounder, RoundingStage
from daptq.quantization.scores import ScoresStage
from daptq.quantization.stage import Inputs, Stage
from daptq.quantization.statistics import StatisticsStage
from daptq.recipes import Recipe, da_ptq_plus, round_to_nearest
from daptq.sensitivity.probe import metric_root
from daptq.sensitivity.rounding import RoundingSensitivityConfig

# Of a change of weights: float32 leaves 1e-7 / STEP of rounding beside STEP^2 of curvature.
STEP = 1e-2

T = TypeVar("T")


def silent(*_: object) -> None:
    """No progress."""


def calibrated(policy: Policy, held: Any, batches: int) -> Calibration:
    """Calibration data whose proprioception, which is no end-effector pose here, the drift model does not read."""
    checked = Calibration.checked(held(policy, batches), policy, limit=10_000, seed=0, progress=silent)
    return replace(checked, positions=None)


def given(policy: Policy, recipe: Recipe, calibration: Calibration) -> Inputs:
    return Inputs(policy=policy, recipe=recipe, calibration=calibration, progress=silent)


def ran(folder: Path, stage: Stage[T]) -> T:
    tensors, described = stage.compute()
    write_artifact(folder, kind=stage.kind, tensors=tensors, metadata=described)
    return stage.read(read_artifact(folder, kind=stage.kind))


def test_costs_are_the_drift_of_a_first_order_change(chain: Policy, tmp_path: Path, held: Any) -> None:
    """Against central differences along the change; n probes leave a relative error of sqrt(2 / n)."""
    recipe = replace(
        round_to_nearest(weight_bits=4),
        sensitivity=RoundingSensitivityConfig(states=10**6),
        allocation=KnapsackConfig(bits=(2, 4), budget_bits=8.0),
    )
    calibration = calibrated(chain, held, batches=100)
    inputs = given(chain, recipe, calibration)
    profile = ProfileStage(inputs=inputs).profile()
    rounder = Rounder(chain, recipe, None, None)
    bits = dict.fromkeys(chain.linear_layers(), (2, 4))
    stage = RoundingStage(name="all", bits=bits, rounder=rounder, progress=silent, before=0, total=len(bits))
    rounded = RoundedLayers(chain, rounder, dict.fromkeys(bits, ran(tmp_path / "rounded", stage)))
    costs = ran(tmp_path / "scores", ScoresStage(inputs=inputs, profile=profile, layers=rounded))
    assert profile.metric is not None
    name = "stack.1"
    change = (rounded.weight(name, 2) - float_linear(chain, name).weight).detach()

    def chunks(batch: Any, generator: torch.Generator, weight: Tensor) -> Tensor:
        return torch.func.functional_call(_Denoised(chain, batch, generator), {f"policy.{name}.weight": weight}, ())

    total, count = 0.0, 0
    for batch, generator in list(calibration)[:12]:
        start = generator.initial_seed()
        weight = float_linear(chain, name).weight.detach()
        ahead, behind = (
            chunks(batch, torch.Generator().manual_seed(start), weight + side * STEP * change) for side in (1, -1)
        )
        moved = (ahead - behind).detach() / (2 * STEP)
        flat = moved.flatten(1).double()
        total += float(((flat @ profile.metric) * flat).sum())
        count += len(flat)
    # 200 probes of 4 states against 96 other states' exact values: 0.1 of sampling each, three standard errors.
    assert costs[name][2] == pytest.approx(total / count, rel=0.45)
    assert costs[name][16] == 0.0
    assert costs[name][2] > costs[name][4] > 0.0


class _Denoised(torch.nn.Module):
    def __init__(self, policy: Policy, batch: Any, generator: torch.Generator) -> None:
        super().__init__()
        self.policy, self.batch, self.generator = policy, batch, generator

    def forward(self) -> Tensor:
        return self.policy.denoised_chunk(self.batch, self.generator)


def test_sensitivity_of_the_interface_is_the_gauss_newton_matrix(chain: Any, held: Any) -> None:
    recipe = da_ptq_plus(budget_bits=4.5)
    calibration = calibrated(chain, held, batches=150)
    inputs = given(chain, recipe, calibration)
    profile = ProfileStage(inputs=inputs).profile()
    tensors, _ = StatisticsStage(inputs=inputs, profile=profile).compute()
    measured = dict(tensors)["consumer/sensitivity"]
    assert profile.metric is not None
    root = metric_root(profile.metric)
    expected = torch.zeros_like(measured)
    count = 0
    for batch, generator in list(calibration)[:20]:
        noise = torch.randn(8, 2, 7, generator=generator)
        z = chain.language(batch["observation.state"]).detach()
        for one, start in zip(z, noise, strict=True):
            jacobian = torch.autograd.functional.jacobian(
                lambda r, s=start: 0.01 * chain.head(r[None], s[None]).flatten(),
                one,
            )
            half = root.mT @ jacobian.double()
            expected += half.mT @ half
            count += 1
    expected /= count
    # 1,200 states with one projection each: the trace has a relative error of about sqrt(2 / 1200) = 0.04 and more for
    # few dominating directions.
    assert float(measured.trace()) == pytest.approx(float(expected.trace()), rel=0.2)
    assert float((measured - expected).norm() / expected.norm()) < 0.25
