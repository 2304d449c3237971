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
from daptq.errors import ForeignArtifactError
from daptq.numerics.moments import Moments

__all__ = ["PROFILE_KIND", "DriftProfile"]

PROFILE_KIND = "profile"


@dataclass(frozen=True, kw_only=True, eq=False)
class DriftProfile:
    """Statistics of a full-precision policy, those of interfaces by the interface's name.

    Attributes:
        drift_weights: float64 (action_dim,), weight of every action dimension, mean 1.
        metric: float64 (k, k), G of the drift model in mm^2, k = chunk_size * action_dim; None when nothing reads it.
        scores: Sensitivity phi of each layer in scope.
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
                "Pass the folder of the right stage."
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
