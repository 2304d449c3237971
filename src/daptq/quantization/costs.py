"""What quantizing each layer costs, its weight at each number of bits and the activations that it reads, in drift.

One backward pass of the full-precision policy per few states gives the costs of many layers at all bits: of as many as
a fixed amount of memory holds the gradients of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch

from daptq.allocation.plan import BFLOAT16
from daptq.artifacts import Artifact
from daptq.calibration.contract import batch_size
from daptq.calibration.input_errors import observe_input_errors
from daptq.drift.loss import drift_loss
from daptq.errors import ForeignArtifactError
from daptq.policies.contract import Batch, Policy
from daptq.progress import Progress
from daptq.quantization.allocation import candidate_bits, float_linear, layers_in_scope
from daptq.quantization.groups import GROUP_BYTES, groups
from daptq.quantization.profile import DriftProfile
from daptq.quantization.profiling import Calibration, evaluating
from daptq.quantization.recipe import Recipe
from daptq.quantization.rounding import RoundedLayers
from daptq.quantization.statistics import probe_generator
from daptq.quantization.workspace import StageContent
from daptq.sensitivity.phi import only_gradients_of
from daptq.sensitivity.rounding import (
    RoundingSensitivity,
    RoundingSensitivityConfig,
    metric_root,
    probe,
)

__all__ = ["COSTS_KIND", "costs_content", "read_costs"]

COSTS_KIND = "rounding-costs"

# States of one backward pass, which gives one sample: several samples with few states each reduce the variance.
STATES_PER_PROBE = 4

BYTES_PER_WEIGHT = 8  # its gradient and what the error of its input adds to it, float32


def costs_content(
    policy: Policy,
    recipe: Recipe,
    config: RoundingSensitivityConfig,
    profile: DriftProfile,
    rounded: RoundedLayers,
    calibration: Calibration,
    *,
    progress: Progress,
) -> StageContent:
    """Costs of every layer in scope at each of its candidate bits; bfloat16 costs nothing.

    Args:
        policy: Full-precision policy.
        recipe: Says which layers are in scope, and which bits they may get.
        config: How the cost is estimated.
        profile: Holds the metric G and the drift weights.
        rounded: The rounded layers.
        calibration: Checked data.
        progress: Called as progress(done, total, "cost") after every backward pass.

    Returns:
        No tensors; metadata ``costs`` by layer and bits, in mm^2 or in units of the drift loss.
    """
    options = candidate_bits(policy, recipe)
    scope = [name for name in layers_in_scope(policy, recipe) if name in options]
    sizes = {name: BYTES_PER_WEIGHT * float_linear(policy, name).weight.numel() for name in scope}
    passes = groups(sizes, GROUP_BYTES)
    steps = -(-min(config.states, calibration.states) // STATES_PER_PROBE)
    costs: dict[str, dict[int, float]] = {}
    for number, group in enumerate(passes):

        def report(done: int, number: int = number) -> None:
            progress(number * steps + done, len(passes) * steps, "cost")

        bits = {name: options[name] for name in group}
        costs |= _one_pass(policy, config, profile, bits, rounded, calibration, report=report)
    return {}, {"costs": {name: {**costs[name], BFLOAT16: 0.0} for name in scope}, "steps": steps}


def _one_pass(
    policy: Policy,
    config: RoundingSensitivityConfig,
    profile: DriftProfile,
    bits: Mapping[str, tuple[int, ...]],
    rounded: RoundedLayers,
    calibration: Calibration,
    *,
    report: Callable[[int], None],
) -> dict[str, dict[int, float]]:
    """Costs of one group of layers."""
    parameters = {name: float_linear(policy, name).weight for name in bits}
    root = None if profile.metric is None else metric_root(profile.metric)
    with (
        evaluating(policy),
        only_gradients_of(policy, parameters),
        observe_input_errors(policy, tuple(bits), rounded.quantized_input) as errors,
    ):
        sensitivity = RoundingSensitivity(parameters, rounded.weight, bits, errors.take)
        for done, (batch, generator) in enumerate(_small(calibration, config.states), start=1):
            if config.estimate == "fisher":
                assert root is not None
                sensitivity.update(probe(policy.denoised_chunk(batch, generator), root, probe_generator(generator)))
            else:
                answer = policy.predict_target(batch, generator)
                sensitivity.update(drift_loss(answer, profile.drift_weights))
            report(done)
    return sensitivity.second_moment() if config.estimate == "fisher" else sensitivity.first_order()


def read_costs(artifact: Artifact) -> dict[str, dict[int, float]]:
    """The costs that the stage wrote; JSON has turned bits into text.

    Raises:
        ForeignArtifactError: The artifact is of another kind.
    """
    if artifact.kind != COSTS_KIND:
        raise ForeignArtifactError(
            f"{artifact.directory} must hold rounding costs, got {artifact.kind!r}. Pass the folder of the right stage."
        )
    return {
        name: {int(bits): float(cost) for bits, cost in by_bits.items()}
        for name, by_bits in artifact.metadata["costs"].items()
    }


def _small(calibration: Calibration, limit: int) -> Iterator[tuple[Batch, torch.Generator]]:
    """The first states in small batches, each with the source of its noise."""
    seen = 0
    for batch, generator in calibration:
        for start in range(0, batch_size(batch), STATES_PER_PROBE):
            if seen >= limit:
                return
            part = {key: value[start : start + STATES_PER_PROBE] for key, value in batch.items()}
            seen += batch_size(part)
            yield part, torch.Generator().manual_seed(generator.initial_seed() + start)
