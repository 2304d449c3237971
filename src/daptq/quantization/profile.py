"""The drift profile: everything that one pass over calibration data says about a full-precision policy.

It is written as an artifact between the stages, so that a killed run continues after it and another method can start
from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from daptq.artifacts import Artifact
from daptq.drift.loss import drift_loss
from daptq.errors import ForeignArtifactError
from daptq.numerics.moments import Moments
from daptq.policies.contract import Batch, Policy
from daptq.quantization.allocation import float_linear, layers_in_scope
from daptq.quantization.interfaces import interfaces_of
from daptq.quantization.profiling import Calibration, evaluating, observe
from daptq.quantization.recipe import Recipe
from daptq.quantization.stage import Inputs, Stage, StageContent
from daptq.sensitivity.gradients import only_gradients_of

__all__ = ["PROFILE_KIND", "DriftProfile", "ProfileStage", "drift_metric"]

PROFILE_KIND = "profile"


@dataclass(frozen=True, kw_only=True, eq=False)
class DriftProfile:
    """Statistics of a full-precision policy, those of interfaces by the interface's name.

    Attributes:
        drift_weights: float64 (action_dim,), weight of every action dimension, mean 1.
        metric: float64 (k, k), G of the drift model in mm^2, k = chunk_size * action_dim; None when nothing reads it.
        scores: What the sensitivity found in the drift loss about each layer in scope; empty if it does not watch it.
        steps: Number of calibration steps R of the scores.
        states: Number of calibration states.
        moments: Mean and covariance of the representation over the states that maps are fitted to.
        fitted: float32 (n, d) representations of those states, in order, one or several rows to a state.
        held_out: float32 (n, d) representations of the states that maps are judged by, in order.
        judged_on_fit: Whether the held-out states are, for want of others, the fitted ones.
    """

    drift_weights: Float[Tensor, " action"]
    metric: Float[Tensor, "k k"] | None
    scores: Mapping[str, float]
    steps: int
    states: int
    moments: Mapping[str, Moments]
    fitted: Mapping[str, Float[Tensor, "n d"]]
    held_out: Mapping[str, Float[Tensor, "n d"]]
    judged_on_fit: bool

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of the artifact."""
        content = {"drift_weights": self.drift_weights}
        content |= {} if self.metric is None else {"metric": self.metric}
        for name, moments in self.moments.items():
            content |= {f"{name}/{key}": value for key, value in moments.tensors().items()}
            content[f"{name}/fitted"] = self.fitted[name]
            content[f"{name}/held_out"] = self.held_out[name]
        return content

    def metadata(self) -> dict[str, Any]:
        """The JSON object of the artifact."""
        return {
            "scores": dict(self.scores),
            "steps": self.steps,
            "states": self.states,
            "interfaces": list(self.moments),
            "judged_on_fit": self.judged_on_fit,
        }

    @classmethod
    def from_artifact(cls, artifact: Artifact) -> DriftProfile:
        """The profile that an artifact of kind ``"profile"`` holds.

        Raises:
            ForeignArtifactError: The artifact is of another kind.
        """
        if artifact.kind != PROFILE_KIND:
            raise ForeignArtifactError(
                f"{artifact.directory} must hold a drift profile, got an artifact of kind {artifact.kind!r}. "
                "Pass the folder of a profile."
            )
        data = artifact.metadata

        def moments(name: str) -> Moments:
            return Moments.from_tensors({k: artifact.tensor(f"{name}/{k}") for k in ("count", "mean", "scatter")})

        return cls(
            drift_weights=artifact.tensor("drift_weights").to(torch.float64),
            metric=artifact.tensor("metric") if "metric" in artifact.tensor_names else None,
            scores=data["scores"],
            steps=data["steps"],
            states=data["states"],
            moments={name: moments(name) for name in data["interfaces"]},
            fitted={name: artifact.tensor(f"{name}/fitted") for name in data["interfaces"]},
            held_out={name: artifact.tensor(f"{name}/held_out") for name in data["interfaces"]},
            judged_on_fit=data["judged_on_fit"],
        )


def drift_metric(policy: Policy, recipe: Recipe, calibration: Calibration) -> Float[Tensor, "k k"]:
    """The matrix G of the recipe's drift model over the demonstrated chunks, or what is executed of them [mm^2]."""
    return recipe.drift_model.metric(
        calibration.chunks,
        calibration.positions,
        space=policy.action_space,
        steps=policy.chunk_size if recipe.drift_horizon == "chunk" else policy.n_action_steps,
    )


@dataclass(frozen=True, kw_only=True)
class ProfileStage(Stage[DriftProfile]):
    """Drift weights, what the drift loss says about layers, and the representations' statistics, eq. 12-19.

    One forward pass per batch; with a backward pass where the sensitivity watches the drift loss.
    """

    name = "profile"
    kind = PROFILE_KIND

    inputs: Inputs

    def profile(self) -> DriftProfile:
        """Runs the pass."""
        policy, recipe, calibration = self.inputs.policy, self.inputs.recipe, self.inputs.data
        needs = recipe.needs
        drift_weights = recipe.drift_model.weights(calibration.actions, policy.action_unit, space=policy.action_space)
        scored = layers_in_scope(policy, recipe) if needs.scores and recipe.sensitivity.needs.gradients else ()
        weights = {name: float_linear(policy, name).weight for name in scored}
        watcher = recipe.sensitivity.watch_loss(weights) if weights else None

        def step(batch: Batch, generator: torch.Generator) -> None:
            if watcher is None:
                with torch.no_grad():
                    policy.predict_target(batch, generator)
            else:
                watcher.update(drift_loss(policy.predict_target(batch, generator), drift_weights))

        def report(done: int, total: int) -> None:
            self.inputs.progress(done, total, "profile")

        with evaluating(policy), only_gradients_of(policy, {} if watcher is None else weights):
            statistics = observe(policy, interfaces_of(policy, recipe), calibration, step, progress=report)
        return DriftProfile(
            drift_weights=drift_weights,
            metric=drift_metric(policy, recipe, calibration) if needs.metric else None,
            scores={} if watcher is None else watcher.scores(),
            steps=0 if watcher is None else calibration.batches,
            states=calibration.states,
            moments=statistics.moments,
            fitted={name: statistics.fitted(name) for name in statistics.moments},
            held_out={name: statistics.held_out(name) for name in statistics.moments},
            judged_on_fit=calibration.batches == 1,
        )

    def compute(self) -> StageContent:
        """The profile as an artifact."""
        profile = self.profile()
        return profile.tensors(), profile.metadata()

    def read(self, artifact: Artifact) -> DriftProfile:
        """The profile."""
        return DriftProfile.from_artifact(artifact)
