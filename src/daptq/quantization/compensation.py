"""The compensation stage: measure the quantized policy, solve a map for every interface, decide whether to apply it."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from daptq.artifacts import Artifact
from daptq.calibration.observers import InterfaceStatistics
from daptq.compensation.contract import CompensationMethod, InterfaceSample
from daptq.compensation.selection import UNCHANGED, SelectedMap, select_map
from daptq.interfaces.affine import AffineMap
from daptq.interfaces.contract import Interface
from daptq.layers.watching import unfused
from daptq.policies.contract import Batch, Policy
from daptq.progress import Progress
from daptq.quantization.folding import Folder
from daptq.quantization.profile import DriftProfile
from daptq.quantization.profiling import Calibration, observe
from daptq.quantization.rounded_errors import HeldOut, rounded_errors
from daptq.quantization.workspace import StageContent

__all__ = ["COMPENSATION_KIND", "compensation_content", "read_maps"]

LOG = logging.getLogger(__name__)

COMPENSATION_KIND = "compensation"


def compensation_content(
    quantized: Policy,
    interfaces: tuple[Interface, ...],
    profile: DriftProfile,
    calibration: Calibration,
    config: CompensationMethod,
    sensitivities: Mapping[str, Tensor],
    folder: Folder,
    *,
    progress: Progress,
) -> StageContent:
    """Runs the quantized policy over the calibration data and decides about every interface.

    Args:
        quantized: The policy in its initial configuration.
        interfaces: Where to compensate.
        profile: Statistics of the full-precision policy on the same data with the same noise.
        calibration: Checked data.
        config: Compensation method.
        sensitivities: H of every interface, float64 (d, d), where the method weighs by drift.
        folder: Says where the map of an interface goes, and what rounding makes of the weights there.
        progress: Called as progress(done, total, "measure") after every batch.

    Returns:
        Tensors ``<interface>/matrix`` and ``<interface>/shift`` in float64, and the decisions by interface.
    """
    folds = {interface.name: folder.fold_of(interface) for interface in interfaces}
    recorded = {layer: name for name, fold in folds.items() for layer in folder.recorded(fold)}
    statistics = _measured(quantized, interfaces, recorded, calibration, progress)
    tensors: dict[str, Tensor] = {}
    decisions: dict[str, dict[str, Any]] = {}
    for name, fold in folds.items():
        weight = sensitivities.get(name)
        full = InterfaceSample(rows=profile.fitted[name], moments=profile.moments[name])
        maps = config.solve(full, _sample(statistics, name), weight, fold.map_class, fold.map_heads)
        held_out = HeldOut(
            full=profile.held_out[name],
            quantized=statistics.held_out(name),
            inputs={layer: statistics.held_inputs(layer) for layer in folder.recorded(fold)},
            mean=full.moments.mean,
            sensitivity=weight,
        )
        chosen = select_map(
            maps,
            held_out.quantized,
            held_out.full,
            held_out.mean,
            max_condition=config.max_condition,
            always=config.selection == "always",
            sensitivity=weight,
            rounded_errors=partial(rounded_errors, folder, fold, held_out=held_out),
        )
        LOG.log(logging.WARNING if chosen.name == UNCHANGED else logging.INFO, "%s: %s", name, chosen.reason)
        tensors[f"{name}/matrix"] = chosen.affine.matrix
        tensors[f"{name}/shift"] = chosen.affine.shift
        decisions[name] = _decision(chosen, full.moments.count, len(held_out.full), profile)
    return tensors, {"interfaces": decisions}


def _measured(
    quantized: Policy,
    interfaces: tuple[Interface, ...],
    recorded: Mapping[str, str],
    calibration: Calibration,
    progress: Progress,
) -> InterfaceStatistics:
    """What passes the interfaces of the quantized policy, and the inputs of some layers."""

    def step(batch: Batch, generator: torch.Generator) -> None:
        with torch.no_grad():
            quantized.predict_target(batch, generator)

    def report(done: int, total: int) -> None:
        progress(done, total, "measure")

    # A fused stack differs in its last bits, and a streamed policy has no fused one. Whether a policy is streamed must
    # not show in the checkpoint.
    with unfused(quantized):
        return observe(quantized, interfaces, calibration, step, recorded=recorded, progress=report)


def _sample(statistics: InterfaceStatistics, name: str) -> InterfaceSample:
    return InterfaceSample(rows=statistics.fitted(name), moments=statistics.moments[name])


def _decision(chosen: SelectedMap, fitted: int, judged: int, profile: DriftProfile) -> dict[str, Any]:
    """A choice as a JSON object."""
    return {
        "map": chosen.name,
        "reason": chosen.reason,
        "errors": dict(chosen.errors),
        "rounded_errors": None if chosen.rounded_errors is None else dict(chosen.rounded_errors),
        # JSON has no infinity: a singular map has no condition number.
        "condition_numbers": {k: v if math.isfinite(v) else None for k, v in chosen.condition_numbers.items()},
        "fitted_rows": fitted,
        "judged_rows": judged,
        "judged_on_fit": profile.judged_on_fit,
    }


def read_maps(artifact: Artifact) -> Mapping[str, AffineMap]:
    """The chosen map of every interface, the identity where none was applied."""
    return {
        name: AffineMap(matrix=artifact.tensor(f"{name}/matrix"), shift=artifact.tensor(f"{name}/shift"))
        for name in artifact.metadata["interfaces"]
    }
