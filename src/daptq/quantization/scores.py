"""The stage that scores layers: what the sensitivity says about each layer in scope at each of its bits.

The method does its own passes; this module lends it the policy, the rounded layers and the data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from daptq.allocation.plan import BFLOAT16
from daptq.artifacts import Artifact
from daptq.calibration.contract import batch_size
from daptq.calibration.input_errors import observe_input_errors
from daptq.drift.loss import drift_loss
from daptq.errors import InvalidInputError
from daptq.policies.contract import Batch
from daptq.quantization.allocation import candidate_bits, float_linear, layers_in_scope
from daptq.quantization.profile import DriftProfile
from daptq.quantization.profiling import GROUP_BYTES, evaluating, groups
from daptq.quantization.rounding import RoundedLayers
from daptq.quantization.stage import Inputs, Stage, StageContent
from daptq.sensitivity.contract import InputError
from daptq.sensitivity.gradients import only_gradients_of

__all__ = ["PolicyPasses", "ScoresStage"]


@dataclass(frozen=True, kw_only=True)
class PolicyPasses:
    """What a sensitivity method may do, see `daptq.sensitivity.contract.Passes`.

    Attributes:
        inputs: Policy, recipe and data.
        profile: Holds the metric G, the drift weights, and the scores that the drift loss gave.
        layers: The rounded layers.
        bits: Bits, bfloat16 left out, that each layer to be scored may get.
    """

    inputs: Inputs
    profile: DriftProfile
    layers: RoundedLayers
    bits: Mapping[str, tuple[int, ...]]

    @property
    def states(self) -> int:
        """Number of calibration states."""
        return self.inputs.data.states

    @property
    def loss_scores(self) -> Mapping[str, float]:
        """What the drift loss of the profile's pass said."""
        return self.profile.scores

    @property
    def metric(self) -> Float[Tensor, "k k"]:
        """G of the drift model [mm^2]."""
        assert self.profile.metric is not None, "the sensitivity says that it needs the metric"
        return self.profile.metric

    def groups(self, bytes_per_weight: int) -> list[tuple[str, ...]]:
        """The layers in groups that fit into memory."""
        sizes = {name: bytes_per_weight * float_linear(self.inputs.policy, name).weight.numel() for name in self.bits}
        return groups(sizes, GROUP_BYTES)

    def batches(self, states: int, size: int) -> Iterator[tuple[Batch, torch.Generator]]:
        """The first states in small batches, each with the source of its noise."""
        seen = 0
        for batch, generator in self.inputs.data:
            for start in range(0, batch_size(batch), size):
                if seen >= states:
                    return
                part = {key: value[start : start + size] for key, value in batch.items()}
                seen += batch_size(part)
                yield part, torch.Generator().manual_seed(generator.initial_seed() + start)

    def weight(self, name: str) -> Float[Tensor, "out in"]:
        """The float weight of a layer."""
        return self.layers.rounder.weight(name).detach().to(torch.float32)

    @contextmanager
    def gradients(self, names: tuple[str, ...]) -> Iterator[tuple[Mapping[str, Tensor], InputError]]:
        """Within the block the weights of these layers, and no other parameters, require gradients.

        Raises:
            InvalidInputError: The method does not say that it needs gradients, so nobody made sure that there are some.
        """
        policy, method = self.inputs.policy, self.inputs.recipe.sensitivity
        if not method.needs.gradients:
            raise InvalidInputError(
                f"needs of the sensitivity {method.method} must include gradients, got {method.needs}. Add "
                "gradients=True to them, or read weights by `Passes.weight`."
            )
        weights = {name: float_linear(policy, name).weight for name in names}
        with (
            evaluating(policy),
            only_gradients_of(policy, weights),
            observe_input_errors(policy, names, self.layers.quantized_input) as errors,
        ):
            yield weights, errors.take

    def chunk(self, batch: Batch, generator: torch.Generator) -> Float[Tensor, "b chunk action"]:
        """The predicted chunk, physical units."""
        return self.inputs.policy.denoised_chunk(batch, generator)

    def loss(self, batch: Batch, generator: torch.Generator) -> Float[Tensor, ""]:
        """The drift loss, eq. 18."""
        return drift_loss(self.inputs.policy.predict_target(batch, generator), self.profile.drift_weights)

    def rounded(self, name: str, num_bits: int) -> Float[Tensor, "out in"]:
        """The rounded weight as floats."""
        return self.layers.weight(name, num_bits)

    def report(self, done: int, total: int) -> None:
        """Tells the user how far the scoring is."""
        self.inputs.progress(done, total, "score")


@dataclass(frozen=True, kw_only=True)
class ScoresStage(Stage[dict[str, dict[int, float]]]):
    """The score of every layer in scope by bits; bfloat16 scores 0, since nothing is lost there.

    Attributes:
        inputs: Policy, recipe and data.
        profile: Profile of the full-precision policy.
        layers: The rounded layers.
    """

    name = "scores"
    kind = "layer-scores"

    inputs: Inputs
    profile: DriftProfile
    layers: RoundedLayers

    def compute(self) -> StageContent:
        """No tensors; metadata ``scores`` by layer and bits."""
        policy, recipe = self.inputs.policy, self.inputs.recipe
        options = candidate_bits(policy, recipe)
        bits = {name: options[name] for name in layers_in_scope(policy, recipe)}
        passes = PolicyPasses(inputs=self.inputs, profile=self.profile, layers=self.layers, bits=bits)
        scores = recipe.sensitivity.scores(passes)
        return {}, {"scores": {name: {**scores[name], BFLOAT16: 0.0} for name in bits}}

    def read(self, artifact: Artifact) -> dict[str, dict[int, float]]:
        """The scores; JSON has turned bits into text."""
        return {
            name: {int(bits): float(score) for bits, score in by_bits.items()}
            for name, by_bits in artifact.metadata["scores"].items()
        }
