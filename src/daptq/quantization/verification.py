"""The verification stage: replay calibration states with the same noise and measure what a whole plan does.

The measurement is the root mean square drift of the executed chunk under the recipe's metric G [mm]. Layers of the plan
are promoted until it is within the gate; every promotion is written down with its reason.
"""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from daptq.allocation.knapsack import KnapsackConfig
from daptq.allocation.plan import BitPlan
from daptq.allocation.verification import Verification, VerificationConfig, promote
from daptq.calibration.contract import batch_size
from daptq.policies.contract import Batch, Policy
from daptq.progress import Progress
from daptq.quantization.allocation import budget_of, candidate_bits, layer_resources
from daptq.quantization.assembly import assemble
from daptq.quantization.profiling import Calibration, evaluating
from daptq.quantization.recipe import Recipe
from daptq.quantization.rounding import RoundedLayers

__all__ = ["VERIFICATION_KIND", "Replay", "verification_json", "verify"]

VERIFICATION_KIND = "verification"

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


def verify(
    policy: Policy,
    recipe: Recipe,
    config: VerificationConfig,
    plan: BitPlan,
    costs: dict[str, dict[int, float]],
    rounded: RoundedLayers,
    replay: Replay,
    *,
    progress: Progress,
) -> Verification:
    """Measures a plan, and promotes its layers until the gate holds.

    Args:
        policy: Full-precision policy.
        recipe: Says which budget promotions must keep, if any.
        config: The gate.
        plan: The allocated plan.
        costs: Cost of each layer in scope at each of its bits.
        rounded: The rounded layers.
        replay: Measures a policy.
        progress: Called as progress(done, total, "verify") after every measurement.
    """
    measured = 0

    def measure(candidate: BitPlan) -> float:
        nonlocal measured
        drift = replay.drift(assemble(policy, candidate, rounded.planned(candidate)))
        measured += 1
        progress(min(measured, config.max_rounds), config.max_rounds, "verify")
        return drift

    options = {name: tuple(by_bits) for name, by_bits in costs.items()}
    # Idle layers have no cost, but they use up the budget.
    options |= {name: (plan[name].num_bits,) for name in policy.idle_layers() if name in candidate_bits(policy, recipe)}
    if isinstance(recipe.allocation, KnapsackConfig):
        per, budget = budget_of(policy, recipe.allocation, options)
        limit: float | None = budget
    else:
        per, limit = "bytes", None
    result = promote(
        plan,
        costs,
        layer_resources(policy, recipe, options, per=per),
        measure,
        gate=math.inf if config.gate_mm is None else config.gate_mm,
        budget=limit,
        max_rounds=config.max_rounds,
    )
    LOG.log(logging.INFO if result.holds else logging.WARNING, "verification: %s", result.reason)
    for step in result.steps:
        LOG.info("%s from %d to %d bits: %s", step.layer, step.before_bits, step.after_bits, step.reason)
    return result


def verification_json(result: Verification) -> dict[str, Any]:
    """The record of a verification; JSON has no infinity."""
    obj = result.to_json()
    return {**obj, "gate": None if math.isinf(obj["gate"]) else obj["gate"]}
