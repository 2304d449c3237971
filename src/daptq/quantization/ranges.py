"""Ranges of the inputs of quantized layers: what smoothing and static activation scales are calculated from.

One forward pass through the denoising loop per batch; a second one where static scales are for smoothed inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from daptq.calibration.activation_range import ActivationRanges, observe_ranges
from daptq.kernels.linear.transform import transform
from daptq.numerics.rotation import hadamard
from daptq.policies.contract import Policy
from daptq.progress import Progress
from daptq.quantization.allocation import calibrated_layers, float_linear
from daptq.quantization.profiling import Calibration, evaluating
from daptq.quantization.recipe import Recipe
from daptq.quantization.workspace import StageContent

__all__ = ["RANGES_KIND", "ranges_content"]

RANGES_KIND = "activation-ranges"


def ranges_content(policy: Policy, recipe: Recipe, calibration: Calibration, *, progress: Progress) -> StageContent:
    """Runs the passes.

    Args:
        policy: Full-precision policy.
        recipe: Says how inputs are transformed and how activations are scaled.
        calibration: Checked data.
        progress: Called as progress(done, total, "ranges") after every batch.

    Returns:
        Tensors float32 ``<layer>/absmax`` (in,) where the recipe smooths, and ``<layer>/range`` (1,) or (steps,) where
        its activation scales are static.
    """
    names = calibrated_layers(policy, recipe)
    tensors: dict[str, Tensor] = {}
    if recipe.transform.smoothing:
        ranges = _observed(policy, names, {}, calibration, progress)
        tensors |= {f"{name}/absmax": ranges.absmax(name) for name in names}
    if recipe.activations.scaling != "dynamic":
        transforms = {name: _transform(policy, recipe, name, tensors.get(f"{name}/absmax")) for name in names}
        ranges = _observed(policy, names, transforms, calibration, progress)
        looped = _layers_in_the_loop(policy) if recipe.activations.scaling == "per-step" else frozenset[str]()
        for name in names:
            steps = policy.denoising_steps if name in looped else 1
            tensors[f"{name}/range"] = ranges.percentile(name, recipe.activations.percentile, steps=steps)
    return tensors, {}


def _observed(
    policy: Policy,
    names: tuple[str, ...],
    transforms: Mapping[str, Callable[[Tensor], Tensor]],
    calibration: Calibration,
    progress: Progress,
) -> ActivationRanges:
    """One pass."""
    with (
        evaluating(policy),
        torch.no_grad(),
        observe_ranges(policy, names, step=policy.denoising_step, transforms=transforms) as ranges,
    ):
        for index, (batch, generator) in enumerate(calibration):
            policy.denoised_chunk(batch, generator)
            progress(index + 1, calibration.batches, "ranges")
    return ranges


def _transform(policy: Policy, recipe: Recipe, name: str, absmax: Tensor | None) -> Callable[[Tensor], Tensor]:
    """What the quantized layer will do to its input."""
    _, input_scale, block = recipe.transform.apply(float_linear(policy, name).weight, absmax)
    return partial(transform, input_scale=input_scale, rotation=hadamard(block) if block else None)


def _layers_in_the_loop(policy: Policy) -> frozenset[str]:
    """Layers that run in every denoising step: those of the action head."""
    return frozenset(name for name, role in policy.linear_layers().items() if role == "action_head")
