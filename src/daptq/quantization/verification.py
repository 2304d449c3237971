"""The verification stage: replay calibration states with the same noise and measure what a whole plan does.

The measurement is the root mean square drift of the executed chunk under the recipe's metric G [mm]. Layers of the plan
are promoted until it is within the gate; every promotion is written down with its reason.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from daptq.allocation.budget import Resource
from daptq.allocation.plan import BitPlan
from daptq.allocation.verification import VerificationConfig, promote
from daptq.artifacts import Artifact
from daptq.calibration.contract import batch_size
from daptq.policies.contract import Batch, Policy
from daptq.quantization.allocation import candidate_bits, float_linear, layer_resources
from daptq.quantization.assembly import assemble
from daptq.quantization.profile import DriftProfile
from daptq.quantization.profiling import Calibration, evaluating
from daptq.quantization.rounding import RoundedLayers
from daptq.quantization.stage import Inputs, Stage, StageContent

__all__ = ["Replay", "VerificationStage"]

LOG = logging.getLogger(__name__)


class Replay:
    """Chunks of the full-precision policy on some states, to hold quantized ones against.

    Args:
        policy: Full-precision policy.
        metric: float64 (k, k), G in mm^2.
        calibration: Checked data.
        states: Number of states, drawn from the batches that no map was fitted to.
    """

    def __init__(self, policy: Policy, metric: Float[Tensor, "k k"], calibration: Calibration, states: int) -> None:
        self._metric = metric
        self._batches: list[tuple[Batch, torch.Generator]] = []
        remaining = states
        for index, (batch, generator) in enumerate(calibration):
            if remaining > 0 and calibration.judges(index):
                part = {key: value[:remaining] for key, value in batch.items()}
                self._batches.append((part, generator))
                remaining -= batch_size(part)
        self._reference = self._chunks(policy)

    def drift(self, quantized: Policy) -> float:
        """Root mean square of e^T G e over the states [mm], e the error of the chunk in physical units."""
        error = (self._chunks(quantized) - self._reference).flatten(1)
        return math.sqrt(float(((error @ self._metric) * error).sum(dim=1).clamp_min(0).mean()))

    def _chunks(self, policy: Policy) -> Float[Tensor, "n chunk action"]:
        with evaluating(policy), torch.inference_mode():
            return torch.cat(
                [
                    policy.denoised_chunk(batch, torch.Generator().manual_seed(generator.initial_seed())).double()
                    for batch, generator in self._batches
                ]
            )


@dataclass(frozen=True, kw_only=True)
class VerificationStage(Stage[tuple[BitPlan, dict[str, Any]]]):
    """The plan after it was measured and its layers were promoted until the gate holds, and the record of that.

    Attributes:
        inputs: Policy, recipe and data; the recipe says which budget promotions must keep, if any.
        config: The gate.
        plan: The allocated plan.
        costs: Cost of each layer in scope at each of its bits.
        layers: The rounded layers.
        profile: Holds the metric G.
    """

    name = "verification"
    kind = "verification"

    inputs: Inputs
    config: VerificationConfig
    plan: BitPlan
    costs: Mapping[str, Mapping[int, float]]
    layers: RoundedLayers
    profile: DriftProfile

    def compute(self) -> StageContent:
        """Measures and promotes; progress counts the measurements."""
        policy, recipe, config = self.inputs.policy, self.inputs.recipe, self.config
        assert self.profile.metric is not None, "the verification says that it needs the metric"
        replay = Replay(policy, self.profile.metric, self.inputs.data, config.states)
        measured = 0

        def measure(candidate: BitPlan) -> float:
            nonlocal measured
            drift = replay.drift(assemble(policy, candidate, self.layers.planned(candidate)))
            measured += 1
            self.inputs.progress(min(measured, config.max_rounds), config.max_rounds, "verify")
            return drift

        options = {name: tuple(by_bits) for name, by_bits in self.costs.items()}
        # Idle layers have no cost, but they use up the budget.
        candidates = candidate_bits(policy, recipe)
        options |= {name: (self.plan[name].num_bits,) for name in policy.idle_layers() if name in candidates}
        budget = None if recipe.allocation is None else recipe.allocation.budget
        per: Resource = "bytes" if budget is None else budget.resource
        weights = sum(float_linear(policy, name).weight.numel() for name in options)
        result = promote(
            self.plan,
            self.costs,
            layer_resources(policy, recipe, options, per),
            measure,
            gate=math.inf if config.gate_mm is None else config.gate_mm,
            budget=None if budget is None else budget.amount(weights),
            max_rounds=config.max_rounds,
        )
        LOG.log(logging.INFO if result.holds else logging.WARNING, "verification: %s", result.reason)
        for step in result.steps:
            LOG.info("%s from %d to %d bits: %s", step.layer, step.before_bits, step.after_bits, step.reason)
        record = result.to_json()
        # JSON has no infinity.
        return {}, {"plan": result.plan.to_json(), "record": {**record, "gate": config.gate_mm}}

    def read(self, artifact: Artifact) -> tuple[BitPlan, dict[str, Any]]:
        """The plan and the record."""
        return BitPlan.from_json(artifact.metadata["plan"]), dict(artifact.metadata["record"])
