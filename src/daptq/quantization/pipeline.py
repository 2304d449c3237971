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

from daptq.allocation.plan import BFLOAT16, BitPlan
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
    check_budget,
    float_linear,
    layers_in_scope,
)
from daptq.quantization.assembly import assemble, share_tensors
from daptq.quantization.compensation import COMPENSATION_KIND, compensation_content, read_maps
from daptq.quantization.costs import COSTS_KIND, costs_content, read_costs
from daptq.quantization.drift_model import check_drift_model
from daptq.quantization.folding import Folder, check_folding, layers_to_keep
from daptq.quantization.interfaces import check_interfaces, interfaces_of
from daptq.quantization.layer_times import TIMES_KIND, faster_in_float, layer_times
from daptq.quantization.profile import PROFILE_KIND, DriftProfile
from daptq.quantization.profiling import Calibration, profile_policy
from daptq.quantization.ranges import RANGES_KIND, ranges_content
from daptq.quantization.recipe import Recipe
from daptq.quantization.rounding import ROUNDED_KIND, RoundedLayers, Rounder
from daptq.quantization.statistics import STATISTICS_KIND, interface_sensitivities, needs_statistics, statistics_content
from daptq.quantization.verification import VERIFICATION_KIND, Replay, verification_json, verify
from daptq.quantization.workspace import StageContent, Workspace, digest
from daptq.rounding.gptq import GptqConfig
from daptq.sensitivity.rounding import RoundingSensitivityConfig

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
    check_budget(policy, recipe)
    _require_gradients(policy, recipe)
    source = _source(data, recipe, seed)
    described = _described(policy, recipe, source, seed)
    inputs = digest({key: described[key] for key in ("recipe", "policy_hash", "data_hash", "seed", "daptq")})
    if _is_finished(output, inputs):
        Workspace(output, inputs, described).remove()
        return output
    require_new_output(output)
    calibration = None
    if source is not None:
        limit = recipe.calibration_states
        calibration = Calibration.checked(source, policy, limit=limit, seed=seed, progress=progress)
    workspace = Workspace(output, inputs, described)
    _Run(policy=policy, recipe=recipe, calibration=calibration, workspace=workspace, progress=progress).write(output)
    workspace.remove()
    return output


@dataclass(frozen=True, kw_only=True)
class _Run:
    """The stages of one run, its inputs checked."""

    policy: Policy
    recipe: Recipe
    calibration: Calibration | None
    workspace: Workspace
    progress: Progress

    def write(self, output: Path) -> None:
        """Runs every stage and writes the checkpoint."""
        policy, recipe = self.policy, self.recipe
        profile = self._profile()
        statistics = self._statistics(profile)
        rounder = Rounder(policy, recipe, statistics, self._ranges())
        rounded = self._rounded(rounder)
        scores, faster = self._scores(profile, rounded), self._faster()
        verification: dict[str, Any] | None = None
        if recipe.order == "compensation-first":
            initial = bit_plan(policy, recipe, scores={}, keep=faster)
            # Maps find the consumers that are kept for them in floating point.
            keep = faster | layers_to_keep(policy, recipe)
            folder = Folder(policy, bit_plan(policy, recipe, scores={}, keep=keep), recipe.folding, rounder)
            maps, decisions = self._compensation(initial, rounded, profile, statistics, folder)
            plan = bit_plan(policy, recipe, scores=scores, keep=faster | layers_to_keep(policy, recipe, maps))
            plan, verification = self._verified(plan, scores, rounded, profile)
        else:
            plan = bit_plan(policy, recipe, scores=scores, keep=faster | layers_to_keep(policy, recipe))
            plan, verification = self._verified(plan, scores, rounded, profile)
            folder = Folder(policy, plan, recipe.folding, rounder)
            maps, decisions = self._compensation(plan, rounded, profile, statistics, folder)
        final = share_tensors(policy)
        # Folding replaces some layers; the others are built when they are written, one at a time.
        replaced: dict[str, QuantizedLinear] = {}
        layers = ChainMap(replaced, cast("dict[str, QuantizedLinear]", rounded.planned(plan)))
        folder = Folder(policy, plan, recipe.folding, rounder)
        folded = folder.put(maps, interfaces_of(policy, recipe), final, layers)
        plan_json = {
            "layers": plan.to_json(),
            "drift_weights": None if profile is None else profile.drift_weights.tolist(),
            "calibration_steps": 0 if profile is None else profile.steps,
            "calibration_states": 0 if profile is None else profile.states,
            "verification": verification,
        }
        folding_json = [{**decisions[entry.interface], **entry.to_json()} for entry in folded]
        write_json(self.workspace.path / "plan.json", {"plan": plan_json, "folding": folding_json})
        self.progress(0, 1, "write")
        save_quantized(
            final,
            output,
            layers=layers,
            plan=plan_json,
            folding=folding_json,
            recipe=recipe.to_json(),
            provenance=self.workspace.provenance,
        )
        self.progress(1, 1, "write")

    def _profile(self) -> DriftProfile | None:
        """Stage 1; None when the recipe needs no data."""
        calibration = self.calibration
        if calibration is None:
            return None

        def compute() -> StageContent:
            profile = profile_policy(self.policy, self.recipe, calibration, progress=self.progress)
            return profile.tensors(), profile.metadata()

        return DriftProfile.from_artifact(self.workspace.stage("profile", PROFILE_KIND, compute))

    def _statistics(self, profile: DriftProfile | None) -> Artifact | None:
        """Gram matrices and interface sensitivities; None when no stage reads them."""
        calibration = self.calibration
        if calibration is None or profile is None or not needs_statistics(self.recipe):
            return None

        def compute() -> StageContent:
            return statistics_content(self.policy, self.recipe, profile, calibration, progress=self.progress)

        return self.workspace.stage("statistics", STATISTICS_KIND, compute)

    def _ranges(self) -> Artifact | None:
        """Ranges of the layers' inputs; None when nothing reads them."""
        calibration = self.calibration
        if calibration is None or not self.recipe.needs_ranges:
            return None

        def compute() -> StageContent:
            return ranges_content(self.policy, self.recipe, calibration, progress=self.progress)

        return self.workspace.stage("ranges", RANGES_KIND, compute)

    def _rounded(self, rounder: Rounder) -> RoundedLayers:
        """Every layer that may be quantized, rounded to each number of bits that it may get; a stage for each block."""
        options = candidate_bits(self.policy, self.recipe)
        artifacts: dict[str, Artifact] = {}
        for block in self.policy.blocks():
            bits = {name: options[name] for name in self.policy.linear_layers_of(block) if name in options}
            if not bits:
                continue

            def compute(bits: dict[str, tuple[int, ...]] = bits, before: int = len(artifacts)) -> StageContent:
                def report(done: int) -> None:
                    self.progress(before + done, len(options), "round")

                return rounder.layers(bits, progress=report), {}

            stage = self.workspace.stage(f"rounded/{block.name}", ROUNDED_KIND, compute)
            artifacts |= dict.fromkeys(bits, stage)
        return RoundedLayers(self.policy, rounder, artifacts)

    def _faster(self) -> dict[str, str]:
        """Layers that stay bfloat16 because that is faster; none when the recipe does not ask."""
        if not self.recipe.float_where_faster:
            return {}
        options = {name: (*bits, BFLOAT16) for name, bits in candidate_bits(self.policy, self.recipe).items()}

        def compute() -> StageContent:
            times = layer_times(self.policy, self.recipe, options)
            return {}, {"milliseconds": {name: {str(b): t for b, t in row.items()} for name, row in times.items()}}

        # Saved, so that a resumed run makes the same choice even if the machine is busier.
        times = self.workspace.stage("times", TIMES_KIND, compute).metadata["milliseconds"]
        kept = faster_in_float({name: {int(b): t for b, t in row.items()} for name, row in times.items()})
        LOG.info("%d of %d layers stay bfloat16 because that is faster: %s", len(kept), len(times), ", ".join(kept))
        return kept

    def _scores(self, profile: DriftProfile | None, rounded: RoundedLayers) -> dict[str, dict[int, float]]:
        """Score of every layer in scope by bits: phi, or what rounding costs; empty when nothing is scored."""
        config, calibration = self.recipe.sensitivity, self.calibration
        if calibration is None or profile is None or not self.recipe.scores_layers:
            return {}
        if not isinstance(config, RoundingSensitivityConfig):
            options = candidate_bits(self.policy, self.recipe)
            return {name: dict.fromkeys((*options[name], BFLOAT16), score) for name, score in profile.scores.items()}

        def compute() -> StageContent:
            return costs_content(
                self.policy, self.recipe, config, profile, rounded, calibration, progress=self.progress
            )

        return read_costs(self.workspace.stage("costs", COSTS_KIND, compute))

    def _verified(
        self,
        plan: BitPlan,
        scores: dict[str, dict[int, float]],
        rounded: RoundedLayers,
        profile: DriftProfile | None,
    ) -> tuple[BitPlan, dict[str, Any] | None]:
        """The plan after joint verification, and its record; the plan as it is when the recipe does not verify."""
        config, calibration = self.recipe.verification, self.calibration
        if config is None or calibration is None or profile is None or profile.metric is None:
            return plan, None
        replay = Replay(self.policy, profile.metric, calibration, config.states)

        def compute() -> StageContent:
            result = verify(self.policy, self.recipe, config, plan, scores, rounded, replay, progress=self.progress)
            return {}, {"plan": result.plan.to_json(), "record": verification_json(result)}

        stage = self.workspace.stage("verification", VERIFICATION_KIND, compute)
        return BitPlan.from_json(stage.metadata["plan"]), dict(stage.metadata["record"])

    def _compensation(
        self,
        plan: BitPlan,
        rounded: RoundedLayers,
        profile: DriftProfile | None,
        statistics: Artifact | None,
        folder: Folder,
    ) -> tuple[Mapping[str, AffineMap], Mapping[str, Any]]:
        """Measures the policy that `plan` describes and solves the maps; none when the recipe does not compensate."""
        config, calibration = self.recipe.compensation, self.calibration
        if config is None or calibration is None or profile is None:
            return {}, {}

        def compute() -> StageContent:
            sensitivities = interface_sensitivities(statistics)
            return compensation_content(
                assemble(self.policy, plan, rounded.planned(plan)),
                interfaces_of(self.policy, self.recipe),
                profile,
                calibration,
                config,
                sensitivities,
                folder,
                progress=self.progress,
            )

        stage = self.workspace.stage("compensation", COMPENSATION_KIND, compute)
        return read_maps(stage), stage.metadata["interfaces"]


def _require_float(policy: Policy) -> None:
    """Refuses a policy that is quantized already."""
    if packed := [name for name in policy.linear_layers() if hasattr(policy.get_submodule(name), "weight_packed")]:
        raise InvalidInputError(
            f"policy must be in full precision, got {len(packed)} quantized layers such as {packed[0]}. "
            "Load the original policy."
        )


def _require_gradients(policy: Policy, recipe: Recipe) -> None:
    """Refuses gradients of weights that are not in memory."""
    weighted = isinstance(recipe.rounding, GptqConfig) and recipe.rounding.drift_weighted
    scored = layers_in_scope(policy, recipe) if recipe.scores_layers else ()
    wanted = (*scored, *(calibrated_layers(policy, recipe) if weighted else ()))
    if streamed := [name for name in wanted if float_linear(policy, name).weight.is_meta]:
        raise RecipeError(
            f"recipe {recipe.name} must take gradients of layers in memory alone, got {len(streamed)} streamed ones "
            f"such as {streamed[0]}. Load the policy without streaming, or allocate bits within the action head."
        )


def _source(data: str | CalibrationSource | None, recipe: Recipe, seed: int) -> CalibrationSource | None:
    """The calibration data of a recipe that needs it."""
    if not recipe.needs_data:
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
