"""CogACT's action side: a diffusion transformer that sees one *cognition feature* and nothing else of the observation.

Families differ in how they perceive; how a cognition feature becomes a chunk of actions is the same for all of them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from jaxtyping import Float
from numpy import float64
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn

from daptq.observations import ACTION
from daptq.policies.contract import Batch, Block, Condition, Policy, Prediction
from daptq.policies.diffusion import add_noise, ddim_sample, ddim_steps
from daptq.policies.dit import DiT
from daptq.policies.tokenizer import prompt

ACTION_NET = "action_model.net"
CONDITION = f"{ACTION_NET}.z_embedder.linear"
UNCONDITION = f"{ACTION_NET}.z_embedder.uncondition"


class ActionSettings(Protocol):
    """What a configuration says of the action side."""

    @property
    def diffusion_steps(self) -> int:
        """Steps of the training schedule."""

    @property
    def denoising_steps(self) -> int:
        """DDIM steps."""

    @property
    def guidance_scale(self) -> float:
        """Scale of classifier-free guidance; 1 for none."""

    @property
    def action_depth(self) -> int:
        """Blocks of the diffusion transformer."""

    @property
    def prompt_prefix(self) -> tuple[int, ...]:
        """Token ids in front of the prompt."""

    @property
    def prompt_suffix(self) -> tuple[int, ...]:
        """Token ids behind the prompt; the last one reads out the cognition feature."""


class ActionModel(nn.Module):
    """Holder of the DiT under the name that the public weights give it (``action_model.net``)."""

    def __init__(self, net: DiT) -> None:
        super().__init__()
        self.net = net


class CognitionPolicy(Policy):
    """A policy whose action head is CogACT's.

    Attributes:
        settings: The configuration of the action side.
        action_model: The diffusion transformer.
        alphas: Cumulative products of the training schedule.
        tokenizer: Of the instruction.
        action_low: float32 (action_dim,), 1 % quantile of the actions, physical units.
        action_high: float32 (action_dim,), 99 % quantile.
        action_mask: bool (action_dim,), dimensions mapped from [-1, 1] to [low, high]; the others are on-off.
    """

    settings: ActionSettings
    action_model: ActionModel
    alphas: NDArray[float64]
    tokenizer: Tokenizer
    action_low: Tensor
    action_high: Tensor
    action_mask: Tensor

    @abstractmethod
    def cognition(self, batch: Batch) -> Float[Tensor, "b language"]:
        """The cognition feature of every observation."""

    def action_blocks(self) -> tuple[Block, ...]:
        """The blocks of the action head, in execution order."""
        embedders = [f"{ACTION_NET}.x_embedder", f"{ACTION_NET}.t_embedder", f"{ACTION_NET}.z_embedder"]
        names = (*embedders, *self.head_stack(), f"{ACTION_NET}.final_layer")
        return tuple(Block(name=name, role="action_head") for name in names)

    def head_stack(self) -> tuple[str, ...]:
        """See `Policy.head_stack`."""
        return tuple(f"{ACTION_NET}.blocks.{i}" for i in range(self.settings.action_depth))

    def condition(self, batch: Batch) -> Condition:
        """See `Policy.condition`: the cognition feature."""
        return (self.cognition(batch),)

    @property
    def action_unit(self) -> Float[Tensor, " action"]:
        """See `Policy.action_unit`."""
        half = 0.5 * (self.action_high - self.action_low)
        return torch.where(self.action_mask, half, torch.full_like(half, 2.0))

    def denoise(self, condition: Condition, noise: Float[Tensor, "b chunk action"]) -> Float[Tensor, "b chunk action"]:
        """See `Policy.denoise`: DDIM with classifier-free guidance."""
        (cognition,) = condition
        token, noise = cognition.unsqueeze(1), noise.to(cognition)
        net, scale = self.action_model.net, self.settings.guidance_scale

        def predict(sample: Tensor, timestep: int, step: int) -> Tensor:
            self.denoising_step.index = step
            timesteps = torch.full((len(sample),), timestep, device=sample.device)
            if scale == 1.0:
                return net.forward(sample, timesteps, token)
            return net.guided(sample, timesteps, token, scale)

        steps = ddim_steps(self.alphas, self.settings.denoising_steps)
        self.denoising_step.index = 0
        fused = net.denoise(noise, token, scale, steps)
        return ddim_sample(predict, noise, steps) if fused is None else fused

    def executed(
        self,
        chunk: Float[Tensor, "b chunk action"],
        batch: Batch,  # noqa: ARG002  (CogACT's actions do not depend on the observation)
    ) -> Float[Tensor, "b chunk action"]:
        """See `Policy.executed`: clipped to the quantiles; the gripper thresholded."""
        return self.unnormalize(chunk)

    def unlimited(
        self,
        chunk: Float[Tensor, "b chunk action"],
        batch: Batch,  # noqa: ARG002
    ) -> Float[Tensor, "b chunk action"]:
        """See `Policy.unlimited`: un-normalised linearly; the gripper as 2 x - 1, whose threshold is 0."""
        scaled = self.action_low + 0.5 * (chunk + 1) * (self.action_high - self.action_low)
        return torch.where(self.action_mask, scaled, 2 * chunk - 1)

    def predict_target(self, batch: Batch, generator: torch.Generator) -> Prediction:
        """See `Policy.predict_target`: the noise, by the conditional branch, at uniformly drawn diffusion steps."""
        cognition = self.cognition(batch)
        actions = self.normalize(batch[ACTION])
        noise = torch.randn(actions.shape, generator=generator).to(actions)
        timesteps = torch.randint(0, self.settings.diffusion_steps, (len(actions),), generator=generator).to(
            actions.device
        )
        noisy = add_noise(actions, noise, timesteps, self.alphas)
        predicted = self.action_model.net(noisy, timesteps, cognition.unsqueeze(1))
        return Prediction(predicted=predicted, target=noise, kind="noise")

    def normalize(self, actions: Float[Tensor, "b chunk action"]) -> Float[Tensor, "b chunk action"]:
        """Physical units to [-1, 1] between the quantiles; the gripper's -1 / +1 to 0 / 1."""
        scaled = 2 * (actions - self.action_low) / (self.action_high - self.action_low) - 1
        return torch.where(self.action_mask, scaled.clamp(-1, 1), (actions > 0).to(actions))

    def unnormalize(self, actions: Float[Tensor, "b chunk action"]) -> Float[Tensor, "b chunk action"]:
        """Inverse of `normalize`, with actions clipped to [-1, 1] and the gripper thresholded at 0.5."""
        scaled = 0.5 * (actions.clamp(-1, 1) + 1) * (self.action_high - self.action_low) + self.action_low
        return torch.where(self.action_mask, scaled, torch.where(actions >= 0.5, 1.0, -1.0).to(actions))

    def prompt_ids(self, instructions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids int64 (b, length), padded behind, and the index of the last real token of each row."""
        settings = self.settings
        rows = [
            [*settings.prompt_prefix, *self.tokenizer.encode(prompt(text)).ids, *settings.prompt_suffix]
            for text in instructions
        ]
        length = max(len(row) for row in rows)
        ids = torch.tensor([row + [0] * (length - len(row)) for row in rows], device=self.device)
        last = torch.tensor([len(row) - 1 for row in rows], device=self.device)
        return ids, last


def register_action_buffers(policy: nn.Module, values: Mapping[str, tuple[float, ...]], mask: tuple[bool, ...]) -> None:
    """(Re)creates normalisation constants as buffers that are no part of the weights."""
    for label, value in values.items():
        policy.register_buffer(label, torch.tensor(value, dtype=torch.float32), persistent=False)
    policy.register_buffer("action_mask", torch.tensor(mask, dtype=torch.bool), persistent=False)
