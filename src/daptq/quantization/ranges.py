"""Ranges of the inputs of quantized layers: what smoothing and static activation scales are calculated from.

One forward pass through the denoising loop per batch; a second one where static scales are for smoothed inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from daptq.artifacts import Artifact
from daptq.calibration.activation_range import ActivationRanges, observe_ranges
from daptq.policies.contract import Policy
from daptq.quantization.allocation import calibrated_layers
from daptq.quantization.profiling import evaluating
from daptq.quantization.stage import Inputs, Stage, StageContent

__all__ = ["RangesStage"]


@dataclass(frozen=True, kw_only=True)
class RangesStage(Stage[Artifact]):
    """Tensors float32 ``<layer>/absmax`` (in,) where the recipe smooths, ``<layer>/range`` where scales need it.

    Attributes:
        inputs: Policy, recipe and data.
    """

    name = "ranges"
    kind = "activation-ranges"

    inputs: Inputs

    def compute(self) -> StageContent:
        """Runs the passes."""
        policy, recipe = self.inputs.policy, self.inputs.recipe
        names = calibrated_layers(policy, recipe)
        tensors: dict[str, Tensor] = {}
        if recipe.transform.needs.ranges:
            ranges = self._observed(names, {})
            tensors |= {f"{name}/absmax": ranges.absmax(name) for name in names}
        if recipe.activation_scaling.needs.ranges:
            weights = policy.tensors()
            transforms = {
                name: recipe.transform.of_layer(weights[f"{name}.weight"], tensors.get(f"{name}/absmax")).input
                for name in names
            }
            ranges = self._observed(names, transforms)
            looped = _layers_in_the_loop(policy)
            for name in names:
                steps = policy.denoising_steps if name in looped else 1
                kept = recipe.activation_scaling.kept_ranges(_LayerRanges(ranges, name), steps=steps)
                tensors[f"{name}/range"] = kept
        return tensors, {}

    def read(self, artifact: Artifact) -> Artifact:
        """The artifact: its tensors are read layer by layer."""
        return artifact

    def _observed(
        self, names: tuple[str, ...], transforms: Mapping[str, Callable[[Tensor], Tensor]]
    ) -> ActivationRanges:
        """One pass."""
        policy, calibration = self.inputs.policy, self.inputs.data
        with (
            evaluating(policy),
            torch.no_grad(),
            observe_ranges(policy, names, step=policy.denoising_step, transforms=transforms) as ranges,
        ):
            for index, (batch, generator) in enumerate(calibration):
                policy.denoised_chunk(batch, generator)
                self.inputs.progress(index + 1, calibration.batches, "ranges")
        return ranges


@dataclass(frozen=True)
class _LayerRanges:
    """The ranges of one layer."""

    ranges: ActivationRanges
    layer: str

    def percentile(self, percent: float, *, steps: int = 1) -> Float[Tensor, " steps"]:
        return self.ranges.percentile(self.layer, percent, steps=steps)


def _layers_in_the_loop(policy: Policy) -> frozenset[str]:
    """Layers that run in every denoising step: those of the action head."""
    return frozenset(name for name, role in policy.linear_layers().items() if role == "action_head")
