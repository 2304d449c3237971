"""The contract of a Vision-Language-Action policy, as everything else sees it.

A family (one file beside this one) provides the structure that quantization needs (linear layers in execution order,
each with a role, and the perception-to-action interface), the two halves of the prediction of an action chunk, and the
prediction that its training loss is about. This module knows nothing of quantization and of any particular family.

A chunk is predicted in four parts: `condition` reads the observation, `noise` is drawn, `denoise` makes a normalised
chunk of both, and `executed` turns it into commands. Only `denoise` runs the action head, and it depends on tensors
alone, so it can be replaced while the policy runs (see `Policy.running`), recorded, timed and exported.

A *batch* is a dict with LeRobot's keys; `b` is the batch size:

- ``observation.images.<camera>`` (or ``observation.image``): float32 (b, 3, height, width) in [0, 1], one entry per
  camera of the policy;
- ``observation.state``: float32 (b, state_dim), the proprioception, where the policy reads it;
- ``task``: list of b instructions;
- ``action`` (calibration and training only): float32 (b, chunk_size, action_dim), physical units.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from typing_extensions import Self

from daptq.action_space import ActionSpace
from daptq.errors import ForeignArtifactError
from daptq.interfaces.contract import Interface
from daptq.observations import TASK, CameraSize
from daptq.policies.stored_weights import PolicyTensors, StoredWeights

Role = Literal["vision", "connector", "language", "action_head"]
ROLES: tuple[Role, ...] = ("vision", "connector", "language", "action_head")

PredictionKind = Literal["noise", "velocity", "action"]

Batch = dict[str, Any]
Condition = tuple[Tensor, ...]
Loop = Callable[[Condition, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Block:
    """One module of the policy whose linear layers share a role.

    Attributes:
        name: Module path inside the policy, for example ``action_model.net.blocks.3``.
        role: Which part of the policy the block belongs to.
    """

    name: str
    role: Role


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What the action head predicts of a demonstrated chunk, and what it should predict.

    Attributes:
        predicted: float32 (b, chunk_size, action_dim), in normalised action units, differentiable.
        target: float32 (b, chunk_size, action_dim), in the same units.
        kind: What is predicted: the noise that was added, the velocity of a flow, or the action itself.
    """

    predicted: Float[Tensor, "b chunk action"]
    target: Float[Tensor, "b chunk action"]
    kind: PredictionKind


@dataclass
class DenoisingStep:
    """Where the action head is in its denoising loop; a layer with one activation scale per step reads it.

    Attributes:
        index: 0 in the first, noisiest iteration.
    """

    index: int = 0


class Policy(nn.Module, ABC):
    """A VLA policy: images, proprioception and an instruction in, a chunk of actions out.

    Attributes:
        family: Name of the family in the catalog.
        foreign_files: Patterns of the files of a foreign folder (see `recognises`) that are downloaded beside those
            that no loader could run code from; `read_foreign` must not run code from them either.
        name: Human-readable name of this policy.
        action_space: What the dimensions of an action are.
        chunk_size: Number of actions predicted at once.
        n_action_steps: Number of actions of a chunk that are executed before the next prediction.
        cameras: Size of the pictures that the policy expects, by the full key of each camera; None for any size.
        state_dim: Numbers of ``observation.state``; 0 or None for a policy that does not read it.
        deterministic: Whether a chunk depends on the observation alone, so that no noise is drawn.
        denoising_steps: Number of iterations of the action head for one chunk; 1 where it does not iterate.
        denoising_step: The iteration that is running, 0 before the first; the family keeps it up to date in `denoise`.
        observed: The observations of the prediction that is running; None between predictions.
        compute_dtype: Dtype of the activations; a layer whose weight is held in another form answers it for its weight.
        weights: Where a streamed policy reads its large weights from, see `daptq.policies.streaming`; None for a
            policy in memory.
    """

    family: ClassVar[str]
    foreign_files: ClassVar[tuple[str, ...]] = ()
    name: str
    action_space: ActionSpace
    chunk_size: int
    n_action_steps: int
    cameras: Mapping[str, CameraSize | None]
    state_dim: int | None
    deterministic: bool = False
    denoising_steps: int
    denoising_step: DenoisingStep
    observed: Batch | None = None
    compute_dtype: torch.dtype = torch.float32
    weights: StoredWeights | None = None
    _loop: Loop | None = None

    @property
    def action_dim(self) -> int:
        """Number of action dimensions."""
        return len(self.action_space)

    @classmethod
    def recognises(cls, folder: Path) -> bool:  # noqa: ARG003
        """Whether a folder that daptq did not write holds a checkpoint that `read_foreign` reads.

        Args:
            folder: A folder; its weights need not be there yet.
        """
        return False

    @classmethod
    def read_foreign(cls, folder: Path, *, dataset: str | None = None, stream: bool = False) -> Self:  # noqa: ARG003
        """Reads a policy from a folder that the family recognises.

        Args:
            folder: The folder.
            dataset: Data set whose statistics un-normalise the actions, where the folder has those of several.
            stream: Leave the large weights in their files, see `daptq.policies.streaming`.

        Raises:
            ForeignArtifactError: The folder holds no policy of this family.
            InvalidInputError: `dataset` does not fit the folder, or something must be put into it first.
        """
        raise ForeignArtifactError(
            f"{folder} must be an artifact that daptq wrote, got another folder. Family {cls.family!r} reads no others."
        )

    @classmethod
    @abstractmethod
    def tiny(cls, seed: int = 0) -> Self:
        """A policy of this family with few random weights, for tests and examples; float32, in evaluation mode."""

    @classmethod
    @abstractmethod
    def from_config(cls, config: Mapping[str, Any], files: Mapping[str, bytes], *, empty: bool = False) -> Self:
        """Builds the policy from what `config` and `files` returned.

        Args:
            config: The JSON object that `config()` returned.
            files: Extra files such as the tokenizer, as `files()` returned them.
            empty: Leave every parameter on the meta device (buffers are real), so that packed weights can be put in
                place without a float copy ever existing.

        Raises:
            InvalidInputError: The configuration does not describe a policy of this family.
        """

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Everything but the weights and files that `from_config` needs, as a JSON object."""

    @abstractmethod
    def files(self) -> dict[str, bytes]:
        """Extra files that travel with the weights (tokenizer), by file name."""

    @abstractmethod
    def blocks(self) -> tuple[Block, ...]:
        """The blocks in execution order; together they contain every linear layer exactly once."""

    @abstractmethod
    def interfaces(self) -> tuple[Interface, ...]:
        """The perception-to-action interfaces, in execution order; may be empty.

        A policy without one can be rounded by recipes without compensation, evaluated, benchmarked and audited. Recipes
        with compensation and monitors refuse it.

        Where the perception goes on with what passes a tap (keys that a language model attends to as well), a map goes
        to the action head alone. What follows from it there is one tensor of `condition`.
        """

    @abstractmethod
    def head_stack(self) -> tuple[str, ...]:
        """Module paths of the transformer blocks of the action head, in execution order; may be empty."""

    def idle_layers(self) -> tuple[str, ...]:
        """Module paths of linear layers that run although no chunk depends on what they compute."""
        return ()

    def interface_mask(self, name: str, batch: Batch) -> Bool[Tensor, "b rows"] | None:  # noqa: ARG002
        """Which rows of the representation at interface `name` are real and no padding; None where all of them are."""
        return None

    @abstractmethod
    def condition(self, batch: Batch) -> Condition:
        """What the action head reads of the observations, differentiable; the first axis of each tensor is b.

        Args:
            batch: Observation batch; ``action`` is not read.
        """

    def noise(self, count: int, generator: torch.Generator | Sequence[torch.Generator]) -> Float[Tensor, "b ..."]:
        """The start of `denoise` for `count` samples, float32, on the policy's device.

        Standard normal (count, chunk_size, action_dim), drawn on the CPU; a deterministic policy draws nothing, and its
        noise is (count, 0). A family whose action head starts from another shape overrides this.

        Args:
            count: Number of samples.
            generator: One source for all samples, or one for each.
        """
        if self.deterministic:
            return torch.zeros(count, 0, device=self.device)
        shape = (self.chunk_size, self.action_dim)
        if isinstance(generator, torch.Generator):
            noise = torch.randn(count, *shape, generator=generator)
        else:
            noise = torch.stack([torch.randn(*shape, generator=one) for one in generator])
        return noise.to(self.device)

    @abstractmethod
    def denoise(self, condition: Condition, noise: Float[Tensor, "b ..."]) -> Float[Tensor, "b chunk action"]:
        """The normalised action chunk; depends on nothing but its arguments and the weights.

        A family that decodes tokens returns the centres of the bins that it chose, with the gradient of the expected
        centres under the distribution of each token.

        Args:
            condition: What `condition` returned.
            noise: What `noise` returned; a deterministic policy does not read it.
        """

    @abstractmethod
    def executed(self, chunk: Float[Tensor, "b chunk action"], batch: Batch) -> Float[Tensor, "b chunk action"]:
        """A normalised chunk in physical units, with every limit and threshold.

        Args:
            chunk: What `denoise` returned.
            batch: The observations that it belongs to.
        """

    @abstractmethod
    def unlimited(self, chunk: Float[Tensor, "b chunk action"], batch: Batch) -> Float[Tensor, "b chunk action"]:
        """A normalised chunk in physical units, without limits and thresholds: differentiable everywhere.

        Where no limit and no threshold applies it is what `executed` returns; of an on-off action such as the gripper's
        it is the value before thresholding, shifted so that the threshold is at 0.

        Args:
            chunk: What `denoise` returned.
            batch: The observations that it belongs to.
        """

    @property
    def loop(self) -> Loop:
        """What predictions run in place of `denoise`: `denoise` itself, unless `running` replaced it."""
        return self.denoise if self._loop is None else self._loop

    @contextmanager
    def running(self, loop: Loop) -> Iterator[None]:
        """Within the block predictions run `loop` in place of `denoise`; afterwards what they ran before.

        Args:
            loop: Answers as `denoise` does.
        """
        before = self._loop
        # As a plain attribute: a loop that is a module must not become a part of the policy.
        object.__setattr__(self, "_loop", loop)
        try:
            yield
        finally:
            object.__setattr__(self, "_loop", before)

    def predict_chunk(
        self, batch: Batch, generator: torch.Generator | Sequence[torch.Generator]
    ) -> Float[Tensor, "b chunk action"]:
        """Predicts action chunks in physical units; the same generator state gives the same chunk.

        Args:
            batch: Observation batch without ``action``.
            generator: Source of the diffusion noise, one for the batch or one per sample.
        """
        return self.executed(self._normalised(batch, generator), batch)

    def denoised_chunk(
        self, batch: Batch, generator: torch.Generator | Sequence[torch.Generator]
    ) -> Float[Tensor, "b chunk action"]:
        """The chunk of `predict_chunk` before limits and thresholds, see `unlimited`."""
        return self.unlimited(self._normalised(batch, generator), batch)

    def _normalised(
        self, batch: Batch, generator: torch.Generator | Sequence[torch.Generator]
    ) -> Float[Tensor, "b chunk action"]:
        self.observed, self.denoising_step.index = batch, 0
        try:
            return self.loop(self.condition(batch), self.noise(len(batch[TASK]), generator))
        finally:
            self.observed = None

    @property
    @abstractmethod
    def action_unit(self) -> Float[Tensor, " action"]:
        """Physical units of one unit of the normalised action, float32 (action_dim,)."""

    @abstractmethod
    def predict_target(self, batch: Batch, generator: torch.Generator) -> Prediction:
        """Predicts what the training loss compares for ``batch["action"]``, at random noise levels if it has any.

        Args:
            batch: Batch with ``action``.
            generator: Source of noise and noise levels.
        """

    @abstractmethod
    def example_batch(self, seed: int) -> Batch:
        """A small random batch (with ``action``) of the right shapes, for conformance tests."""

    def linear_layers(self) -> dict[str, Role]:
        """Module path to role of every linear layer (float or quantized), in execution order."""
        return {name: block.role for block in self.blocks() for name in self.linear_layers_of(block)}

    def linear_layers_of(self, block: Block) -> tuple[str, ...]:
        """Module paths of the linear layers of one block, in execution order."""
        return tuple(
            f"{block.name}.{path}" if path else block.name
            for path, module in self.get_submodule(block.name).named_modules()
            if hasattr(module, "in_features") and hasattr(module, "out_features")
        )

    def tensors(self) -> Mapping[str, Tensor]:
        """Parameters and persistent buffers by name, in the order of the state dict; streamed ones are read when asked.

        In contrast to `state_dict` this is complete for a policy whose weights stay in files.
        """
        return PolicyTensors(self.state_dict(), self.weights)

    @property
    def device(self) -> torch.device:
        """Device of the parameters and buffers; quantized layers hold nothing but buffers."""
        return next(chain(self.parameters(), self.buffers())).device
