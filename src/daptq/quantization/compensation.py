"""The compensation stage: measure the quantized policy, solve a map for every interface, decide whether to apply it."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from daptq.allocation.plan import BitPlan
from daptq.artifacts import Artifact
from daptq.calibration.observers import InterfaceStatistics
from daptq.compensation.contract import InterfaceSample
from daptq.compensation.selection import UNCHANGED, SelectedMap, select_map
from daptq.interfaces.affine import AffineMap
from daptq.interfaces.contract import Interface
from daptq.layers.watching import unfused
from daptq.policies.contract import Batch, Policy
from daptq.quantization.assembly import assemble
from daptq.quantization.folding import Folder
from daptq.quantization.interfaces import interfaces_of
from daptq.quantization.profile import DriftProfile
from daptq.quantization.profiling import observe
from daptq.quantization.rounded_errors import HeldOut, rounded_errors
from daptq.quantization.rounding import RoundedLayers
from daptq.quantization.stage import Inputs, Stage, StageContent
from daptq.quantization.statistics import interface_sensitivities

__all__ = ["CompensationStage"]

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CompensationStage(Stage[tuple[dict[str, AffineMap], dict[str, Any]]]):
    """The map of every interface, the identity where none is applied, and the decision about it, by interface.

    Attributes:
        inputs: Policy, recipe and data.
        plan: Bits of the layers of the policy that is measured.
        layers: The rounded layers.
        profile: Statistics of the full-precision policy on the same data with the same noise.
        statistics: Holds H of every interface where the method weighs by drift.
        folder: Says where the map of an interface goes, and what rounding makes of the weights there.
    """

    name = "compensation"
    kind = "compensation"

    inputs: Inputs
    plan: BitPlan
    layers: RoundedLayers
    profile: DriftProfile
    statistics: Artifact | None
    folder: Folder

    def compute(self) -> StageContent:
        """Runs the quantized policy over the calibration data and decides about every interface.

        Tensors ``<interface>/matrix`` and ``<interface>/shift`` in float64, and the decisions by interface.
        """
        config = self.inputs.recipe.compensation
        assert config is not None, "the stage runs for a recipe that compensates"
        quantized = assemble(self.inputs.policy, self.plan, self.layers.planned(self.plan))
        interfaces = interfaces_of(self.inputs.policy, self.inputs.recipe)
        sensitivities = interface_sensitivities(self.statistics)
        folds = {interface.name: self.folder.fold_of(interface) for interface in interfaces}
        recorded = {layer: name for name, fold in folds.items() for layer in self.folder.recorded(fold)}
        statistics = _measured(quantized, interfaces, recorded, self.inputs)
        tensors: dict[str, Tensor] = {}
        decisions: dict[str, dict[str, Any]] = {}
        for name, fold in folds.items():
            weight = sensitivities.get(name)
            full = InterfaceSample(rows=self.profile.fitted[name], moments=self.profile.moments[name])
            maps = config.solve(full, _sample(statistics, name), weight, fold.map_class, fold.map_heads)
            held_out = HeldOut(
                full=self.profile.held_out[name],
                quantized=statistics.held_out(name),
                inputs={layer: statistics.held_inputs(layer) for layer in self.folder.recorded(fold)},
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
                rounded_errors=partial(rounded_errors, self.folder, fold, held_out=held_out),
            )
            LOG.log(logging.WARNING if chosen.name == UNCHANGED else logging.INFO, "%s: %s", name, chosen.reason)
            tensors[f"{name}/matrix"] = chosen.affine.matrix
            tensors[f"{name}/shift"] = chosen.affine.shift
            decisions[name] = _decision(chosen, full.moments.count, len(held_out.full), self.profile)
        return tensors, {"interfaces": decisions}

    def read(self, artifact: Artifact) -> tuple[dict[str, AffineMap], dict[str, Any]]:
        """The maps and the decisions."""
        decisions = dict(artifact.metadata["interfaces"])
        maps = {
            name: AffineMap(matrix=artifact.tensor(f"{name}/matrix"), shift=artifact.tensor(f"{name}/shift"))
            for name in decisions
        }
        return maps, decisions


def _measured(
    quantized: Policy,
    interfaces: tuple[Interface, ...],
    recorded: Mapping[str, str],
    inputs: Inputs,
) -> InterfaceStatistics:
    """What passes the interfaces of the quantized policy, and the inputs of some layers."""

    def step(batch: Batch, generator: torch.Generator) -> None:
        with torch.no_grad():
            quantized.predict_target(batch, generator)

    def report(done: int, total: int) -> None:
        inputs.progress(done, total, "measure")

    # A fused stack differs in its last bits, and a streamed policy has no fused one. Whether a policy is streamed must
    # not show in the checkpoint.
    with unfused(quantized):
        return observe(quantized, interfaces, inputs.data, step, recorded=recorded, progress=report)


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
