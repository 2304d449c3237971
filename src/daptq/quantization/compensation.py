"""The compensation stage: measure the quantized policy, solve a map for every interface, decide whether to apply it."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from daptq.artifacts import Artifact
from daptq.compensation import csrc, paired
from daptq.compensation.csrc import CsrcConfig
from daptq.compensation.paired import PairedConfig
from daptq.compensation.selection import UNCHANGED, select_map
from daptq.interfaces.affine import AffineMap
from daptq.interfaces.contract import Interface
from daptq.layers.watching import unfused
from daptq.numerics.moments import Moments
from daptq.policies.contract import Batch, Policy
from daptq.quantization.profile import DriftProfile
from daptq.quantization.profiling import Calibration, Progress, observe
from daptq.quantization.workspace import StageContent

__all__ = ["COMPENSATION_KIND", "compensation_content", "read_maps"]

LOG = logging.getLogger(__name__)

COMPENSATION_KIND = "compensation"


def compensation_content(
    quantized: Policy,
    interfaces: tuple[Interface, ...],
    profile: DriftProfile,
    calibration: Calibration,
    config: CsrcConfig | PairedConfig,
    sensitivities: Mapping[str, Tensor],
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
        progress: Called as progress(done, total, "measure") after every batch.

    Returns:
        Tensors ``<interface>/matrix`` and ``<interface>/shift`` in float64, and the decisions by interface.
    """

    def step(batch: Batch, generator: torch.Generator) -> None:
        with torch.no_grad():
            quantized.predict_target(batch, generator)

    # A fused stack differs in its last bits, and a streamed policy has no fused one. Whether a policy is streamed must
    # not show in the checkpoint.
    with unfused(quantized):
        statistics = observe(
            quantized, interfaces, calibration, step, progress=lambda done, total: progress(done, total, "measure")
        )
    held_out = statistics.held_out()
    tensors: dict[str, Tensor] = {}
    decisions: dict[str, dict[str, Any]] = {}
    for name, full in profile.moments.items():
        measured = statistics.moments[name]
        weight = sensitivities.get(name)
        if isinstance(config, CsrcConfig):
            maps = csrc.solve(full.mean, full.covariance(), measured.mean, measured.covariance(), config)
        else:
            maps = _paired(profile.fitted[name], statistics.fitted()[name], weight, config)
        chosen = select_map(
            maps,
            held_out[name],
            profile.held_out[name],
            full.mean,
            max_condition=config.max_condition,
            always=config.selection == "always",
            sensitivity=weight,
        )
        LOG.log(logging.WARNING if chosen.name == UNCHANGED else logging.INFO, "%s: %s", name, chosen.reason)
        tensors[f"{name}/matrix"] = chosen.affine.matrix
        tensors[f"{name}/shift"] = chosen.affine.shift
        decisions[name] = {
            "map": chosen.name,
            "reason": chosen.reason,
            "errors": dict(chosen.errors),
            # JSON has no infinity: a singular map has no condition number.
            "condition_numbers": {k: v if math.isfinite(v) else None for k, v in chosen.condition_numbers.items()},
            "fitted_states": measured.count,
            "judged_states": len(held_out[name]),
            "judged_on_fit": profile.judged_on_fit,
        }
    return tensors, {"interfaces": decisions}


def _paired(
    full: Float[Tensor, "n d"], quantized: Float[Tensor, "n d"], weight: Tensor | None, config: PairedConfig
) -> dict[str, AffineMap]:
    """The paired maps for one interface, from the same states before and after quantization."""
    moments = Moments(2 * full.shape[1])
    moments.update(torch.cat([full, quantized], dim=1))
    mean_fp, mean_q, _, cov_fq, cov_qq = paired.split(moments)
    return paired.candidates(mean_fp, mean_q, cov_fq, cov_qq, weight, config)


def read_maps(artifact: Artifact) -> Mapping[str, AffineMap]:
    """The chosen map of every interface, the identity where none was applied."""
    return {
        name: AffineMap(matrix=artifact.tensor(f"{name}/matrix"), shift=artifact.tensor(f"{name}/shift"))
        for name in artifact.metadata["interfaces"]
    }
