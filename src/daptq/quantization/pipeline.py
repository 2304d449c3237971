"""`quantize`: runs a recipe on a policy, stage by stage, and writes the checkpoint.

    check -> profile -> statistics, ranges -> round -> score -> ... -> fold -> write

where "..." is, with compensation first (Algorithm 1), measure and solve the maps, allocate, verify; with allocation
first (section 3.5) allocate, verify, measure and solve. Stages that a recipe does not ask for are left out. Every
finished stage is an artifact in `<output>.partial`, so that a killed run that is started again with the same inputs
continues there and writes the same bytes.
"""

from __future__ import annotations

import logging
from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from daptq.allocation.plan import BitPlan
from daptq.artifacts import Artifact, hash_tensors, provenance, read_artifact, require_new_output, write_json
from daptq.calibration.contract import CalibrationSource, open_named_source, source_name
from daptq.errors import ArtifactError, CalibrationDataError, InvalidInputError, RecipeError
from daptq.interfaces.affine import AffineMap
from daptq.layers.quantized_linear import QuantizedLinear
from daptq.packing.checkpoint import save_quantized
from daptq.policies.contract import Policy
from daptq.progress import Progress
from daptq.quantization.allocation import (
    bit_plan,
    calibrated_layers,
    candidate_bits,
    check_allocation,
    float_linear,
    layers_in_scope,
)
from daptq.quantization.assembly import share_tensors
from daptq.quantization.compensation import CompensationStage
from daptq.quantization.drift_model import check_drift_model
from daptq.quantization.faster_layers import FasterLayersStage
from daptq.quantization.folding import Folder, check_folding, layers_to_keep
from daptq.quantization.interfaces import check_interfaces, interfaces_of
from daptq.quantization.profile import ProfileStage
from daptq.quantization.profiling import Calibration
from daptq.quantization.ranges import RangesStage
from daptq.quantization.recipe import Recipe
from daptq.quantization.rounding import RoundedLayers, Rounder, RoundingStage
from daptq.quantization.scores import ScoresStage
from daptq.quantization.stage import Inputs
from daptq.quantization.statistics import StatisticsStage
from daptq.quantization.verification import VerificationStage
from daptq.quantization.workspace import Workspace, digest

__all__ = ["quantize"]

LOG = logging.getLogger(__name__)


def quantize(
    policy: Policy,
    recipe: Recipe,
    *,
    data: str | CalibrationSource | None = None,
    output: Path | str,
    seed: int = 0,
    progress: Progress | None = None,
) -> Path:
    """Quantizes a policy and writes a checkpoint folder that `daptq.load_policy` reads without the original.

    A run that was killed continues from `<output>.partial` when it is started again with the same policy, recipe,
    data and seed.

    Args:
        policy: Full-precision policy; it is not changed.
        recipe: What to do, for example ``daptq.recipes.da_ptq()``.
        data: Calibration data: ``"source:split"`` or a source; not read by a recipe that needs none.
        output: Folder to write; must be new or empty.
        seed: Seed of the diffusion noise in calibration and of the choice of calibration states.
        progress: Called as progress(done, total, stage) after every step of a stage.

    Returns:
        `output` as a path.

    Raises:
        RecipeError: The recipe does not fit the policy, or no plan keeps its budget, or it takes gradients of layers
            that a streamed policy leaves in files.
        OutputExistsError: `output` is a file or a folder that is not empty.
        CalibrationDataError: The recipe needs data and there is none, or a batch is not fit for the policy.
        UnknownNameError: There is no source of this name.
        InvalidInputError: The policy is quantized already.
        OutputWriteError: The disk refused a write; nothing is left under the final name.
    """
    output = Path(output)
    progress = progress or _log_progress
    _require_float(policy)
    check_drift_model(policy, recipe)
    check_interfaces(policy, recipe)
    check_folding(policy, recipe)
    check_allocation(policy, recipe)
    _require_gradients(policy, recipe)
    source = _source(data, recipe, seed)
    described = _described(policy, recipe, source, seed)
    decisive = digest({key: described[key] for key in ("recipe", "policy_hash", "data_hash", "seed", "daptq")})
    if _is_finished(output, decisive):
        Workspace(output, decisive, described).remove()
        return output
    require_new_output(output)
    calibration = None
    if source is not None:
        limit = recipe.calibration_states
        calibration = Calibration.checked(source, policy, limit=limit, seed=seed, progress=progress)
    workspace = Workspace(output, decisive, described)
    inputs = Inputs(policy=policy, recipe=recipe, calibration=calibration, progress=progress)
    _Run(inputs=inputs, workspace=workspace).write(output)
    workspace.remove()
    return output


@dataclass(frozen=True, kw_only=True)
class _Run:
    """The stages of one run in their order; a stage that a former run finished is only read."""

    inputs: Inputs
    workspace: Workspace

    def write(self, output: Path) -> None:
        """Runs every stage and writes the checkpoint."""
        inputs, policy, recipe, run = self.inputs, self.inputs.policy, self.inputs.recipe, self.workspace.run
        needs = recipe.needs
        profile = run(ProfileStage(inputs=inputs)) if needs.data else None
        statistics = ranges = None
        if profile is not None and (needs.grams or needs.interface_sensitivities):
            statistics = run(StatisticsStage(inputs=inputs, profile=profile))
        if needs.ranges:
            ranges = run(RangesStage(inputs=inputs))
        layers = self._rounded(Rounder(policy, recipe, statistics, ranges))
        scores: Mapping[str, Mapping[int, float]] = {}
        if profile is not None and needs.scores:
            scores = run(ScoresStage(inputs=inputs, profile=profile, layers=layers))
        faster = run(FasterLayersStage(inputs=inputs)) if recipe.float_where_faster else {}

        def verified(plan: BitPlan) -> tuple[BitPlan, Mapping[str, Any] | None]:
            if recipe.verification is None or profile is None:
                return plan, None
            verification = VerificationStage(
                inputs=inputs, config=recipe.verification, plan=plan, costs=scores, layers=layers, profile=profile
            )
            return run(verification)

        def folder(plan: BitPlan) -> Folder:
            return Folder(policy, plan, recipe.folding, layers.rounder)

        def compensated(plan: BitPlan, within: BitPlan) -> tuple[Mapping[str, AffineMap], Mapping[str, Any]]:
            if recipe.compensation is None or profile is None:
                return {}, {}
            compensation = CompensationStage(
                inputs=inputs,
                plan=plan,
                layers=layers,
                profile=profile,
                statistics=statistics,
                folder=folder(within),
            )
            return run(compensation)

        if recipe.order == "compensation-first":
            initial = bit_plan(policy, recipe, scores={}, keep=faster)
            # Maps find the consumers that are kept for them in floating point.
            kept = bit_plan(policy, recipe, scores={}, keep=faster | layers_to_keep(policy, recipe))
            maps, decisions = compensated(initial, kept)
            keep = faster | layers_to_keep(policy, recipe, maps)
            plan, verification = verified(bit_plan(policy, recipe, scores=scores, keep=keep))
        else:
            keep = faster | layers_to_keep(policy, recipe)
            plan, verification = verified(bit_plan(policy, recipe, scores=scores, keep=keep))
            maps, decisions = compensated(plan, plan)
        final = share_tensors(policy)
        # Folding replaces some layers; the others are built when they are written, one at a time.
        replaced: dict[str, QuantizedLinear] = {}
        quantized = ChainMap(replaced, cast("dict[str, QuantizedLinear]", layers.planned(plan)))
        folded = folder(plan).put(maps, interfaces_of(policy, recipe), final, quantized)
        plan_json = {
            "layers": plan.to_json(),
            "drift_weights": None if profile is None else profile.drift_weights.tolist(),
            "calibration_steps": 0 if profile is None else profile.steps,
            "calibration_states": 0 if profile is None else profile.states,
            "verification": verification,
        }
        folding_json = [{**decisions[entry.interface], **entry.to_json()} for entry in folded]
        write_json(self.workspace.path / "plan.json", {"plan": plan_json, "folding": folding_json})
        inputs.progress(0, 1, "write")
        save_quantized(
            final,
            output,
            layers=quantized,
            plan=plan_json,
            folding=folding_json,
            recipe=recipe.to_json(),
            provenance=self.workspace.provenance,
        )
        inputs.progress(1, 1, "write")

    def _rounded(self, rounder: Rounder) -> RoundedLayers:
        """Every layer that may be quantized, rounded to each number of bits that it may get; a stage for each block."""
        policy = self.inputs.policy
        options = candidate_bits(policy, self.inputs.recipe)
        artifacts: dict[str, Artifact] = {}
        for block in policy.blocks():
            bits = {name: options[name] for name in policy.linear_layers_of(block) if name in options}
            if bits:
                stage = RoundingStage(
                    name=f"rounded/{block.name}",
                    bits=bits,
                    rounder=rounder,
                    progress=self.inputs.progress,
                    before=len(artifacts),
                    total=len(options),
                )
                artifacts |= dict.fromkeys(bits, self.workspace.run(stage))
        return RoundedLayers(policy, rounder, artifacts)


def _require_float(policy: Policy) -> None:
    """Refuses a policy that is quantized already."""
    if packed := [name for name in policy.linear_layers() if hasattr(policy.get_submodule(name), "weight_packed")]:
        raise InvalidInputError(
            f"policy must be in full precision, got {len(packed)} quantized layers such as {packed[0]}. "
            "Load the original policy."
        )


def _require_gradients(policy: Policy, recipe: Recipe) -> None:
    """Refuses gradients with respect to weights that are not in memory."""
    needs = recipe.needs
    scored = layers_in_scope(policy, recipe) if needs.scores and recipe.sensitivity.needs.gradients else ()
    wanted = (*scored, *(calibrated_layers(policy, recipe) if needs.weighted_grams else ()))
    if streamed := [name for name in wanted if float_linear(policy, name).weight.is_meta]:
        raise RecipeError(
            f"recipe {recipe.name} must take gradients of layers in memory alone, got {len(streamed)} streamed ones "
            f"such as {streamed[0]}. Load the policy without streaming, or allocate bits within the action head."
        )


def _source(data: str | CalibrationSource | None, recipe: Recipe, seed: int) -> CalibrationSource | None:
    """The calibration data of a recipe that needs it."""
    if not recipe.needs.data:
        if isinstance(data, str):
            source_name(data)
        if data is not None:
            LOG.info("recipe %s reads no calibration data", recipe.name)
        return None
    if data is None:
        raise CalibrationDataError(
            f"data must be given for recipe {recipe.name}, got none. Write for example data='tabletop:train'."
        )
    if isinstance(data, str):
        return open_named_source(data, limit=recipe.calibration_states, seed=seed)
    return data


def _described(policy: Policy, recipe: Recipe, source: CalibrationSource | None, seed: int) -> dict[str, Any]:
    """Where the result comes from: provenance, with what decides the result."""
    data_hash = None if source is None else source.hash
    identity = {"family": policy.family, "config": policy.config(), "weights": hash_tensors(policy.tensors())}
    described = provenance(recipe=recipe.to_json(), data_hash=data_hash, seed=seed)
    data = None if source is None else {"description": source.description, "licence": source.licence}
    return {
        **described,
        "daptq": described["versions"]["daptq"],
        "policy": policy.name,
        "policy_hash": digest(identity),
        "data": data,
    }


def _is_finished(output: Path, inputs: str) -> bool:
    """Whether a run with these inputs wrote `output` and was killed before it removed its working folder."""
    if not Workspace.belongs_to(output, inputs):
        return False
    try:
        artifact = read_artifact(output, kind="quantized-policy")
    except ArtifactError:
        return False
    return bool(artifact.metadata["provenance"].get("inputs") == inputs)


def _log_progress(done: int, total: int, stage: str) -> None:
    """One line per tenth of a stage."""
    if done == total or done % max(total // 10, 1) == 0:
        LOG.info("%s %d/%d", stage, done, total)
