"""What the CogACT families share: a Llama language model, and a diffusion transformer that reads one cognition feature.

The language model's last hidden state at the last prompt token is the *cognition feature*: all that the action head
sees of the observation. How pictures become tokens is left to the families; how a cognition feature becomes a chunk of
actions is the same for all of them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Final

import torch
from jaxtyping import Float
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel
from typing_extensions import Self

from daptq.action_space import END_EFFECTOR_DELTA, described
from daptq.errors import InvalidInputError
from daptq.interfaces.contract import Interface, Tap
from daptq.interfaces.into_consumers import IntoConsumers
from daptq.observations import ACTION, CameraSize, camera_key
from daptq.policies._config import check_chunk, check_lengths, config_from_json
from daptq.policies.contract import Batch, Block, Condition, DenoisingStep, Policy, Prediction
from daptq.policies.diffusion import add_noise, ddim_sample, ddim_steps, squared_cosine_alphas
from daptq.policies.dit import DiT
from daptq.policies.tokenizer import prompt

__all__ = ["TOKENIZER_FILE", "ActionModel", "CogACTConfig", "CogACTFamily", "register_action_buffers"]

TOKENIZER_FILE: Final = "tokenizer.json"

ACTION_NET = "action_model.net"
CONDITION = f"{ACTION_NET}.z_embedder.linear"
UNCONDITION = f"{ACTION_NET}.z_embedder.uncondition"


@dataclass(frozen=True, kw_only=True)
class CogACTConfig:
    """Sizes and conventions that every CogACT policy has.

    Attributes:
        name: Name of the policy.
        cameras: Image edge length [px] per camera.
        language_width, language_depth, language_heads, language_mlp: The Llama model.
        vocab_size: Rows of its embedding.
        prompt_prefix, prompt_suffix: Token ids around the prompt; the last one reads out the cognition feature.
        action_width, action_depth, action_heads: The diffusion transformer.
        action_dim: 7: an end-effector's delta pose and the gripper's command.
        chunk_size, n_action_steps: The action chunk and how much of it is executed.
        diffusion_steps, denoising_steps, guidance_scale: Training steps, DDIM steps, classifier-free guidance.
        action_low, action_high: 1 % and 99 % quantiles of the actions, physical units, per dimension.
        action_mask: Dimensions mapped from [-1, 1] to [low, high]; the others (gripper) are thresholded at 0.5.
    """

    name: str
    cameras: Mapping[str, int]
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    action_mask: tuple[bool, ...]
    language_width: int
    language_depth: int
    language_heads: int
    language_mlp: int
    vocab_size: int
    prompt_prefix: tuple[int, ...] = (1,)
    prompt_suffix: tuple[int, ...]
    action_width: int
    action_depth: int
    action_heads: int
    action_dim: int = 7
    chunk_size: int = 16
    n_action_steps: int = 4
    diffusion_steps: int = 100
    denoising_steps: int = 10
    guidance_scale: float = 1.5

    def __post_init__(self) -> None:
        if self.action_dim != len(END_EFFECTOR_DELTA):
            raise InvalidInputError(
                f"action_dim must be {len(END_EFFECTOR_DELTA)} ({described(END_EFFECTOR_DELTA)}), got "
                f"{self.action_dim}. Write a family that declares the action space of this policy."
            )
        check_lengths(
            {
                "action_low": (self.action_low, self.action_dim),
                "action_high": (self.action_high, self.action_dim),
                "action_mask": (self.action_mask, self.action_dim),
            }
        )
        check_chunk(self.n_action_steps, self.chunk_size, self.diffusion_steps, self.denoising_steps)

    @classmethod
    def from_json(cls, config: Mapping[str, Any], label: str) -> Self:
        """Builds the configuration from a JSON object, naming what is missing or unknown.

        Args:
            config: The fields by name.
            label: What is configured, for messages.
        """
        return config_from_json(cls, config, label)


class ActionModel(nn.Module):
    """Holder of the DiT under the name that the public weights give it (``action_model.net``)."""

    def __init__(self, net: DiT) -> None:
        super().__init__()
        self.net = net


class CogACTFamily(Policy):
    """A policy that perceives with a Llama language model and acts as CogACT does.

    Args:
        config: Sizes and conventions.
        tokenizer: Of the instruction.

    Attributes:
        settings: Sizes and conventions.
        tokenizer: Of the instruction.
        llm_backbone: The language model.
        action_model: The diffusion transformer.
        alphas: float64, cumulative products of the training schedule.
        action_low: float32 (action_dim,), 1 % quantile of the actions, physical units.
        action_high: float32 (action_dim,), 99 % quantile.
        action_mask: bool (action_dim,), dimensions mapped from [-1, 1] to [low, high]; the others are on-off.
    """

    settings_type: ClassVar[type[CogACTConfig]]
    settings: CogACTConfig
    llm_backbone: LlamaModel
    action_model: ActionModel
    action_low: Tensor
    action_high: Tensor
    action_mask: Tensor

    def __init__(self, config: CogACTConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.settings = config
        self.tokenizer = tokenizer
        self.name = config.name
        self.cameras = {camera_key(camera): CameraSize(size, size) for camera, size in config.cameras.items()}
        self.action_space, self.chunk_size = END_EFFECTOR_DELTA, config.chunk_size
        self.n_action_steps = config.n_action_steps
        self.denoising_steps, self.denoising_step = config.denoising_steps, DenoisingStep()
        self.alphas = squared_cosine_alphas(config.diffusion_steps)

    @abstractmethod
    def cognition(self, batch: Batch) -> Float[Tensor, "b language"]:
        """The cognition feature of every observation."""

    @abstractmethod
    def _create_buffers(self) -> None:
        """(Re)creates what is not a parameter; after construction on the meta device these must become real."""

    @abstractmethod
    def _initialize(self) -> None:
        """Initialises the parameters that torch and transformers leave unset, from torch's global generator."""

    def _language_model(self, *, rms_norm_eps: float) -> LlamaModel:
        """A new language model."""
        config = self.settings
        self.llm_config = LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.language_width,
            intermediate_size=config.language_mlp,
            num_hidden_layers=config.language_depth,
            num_attention_heads=config.language_heads,
            num_key_value_heads=config.language_heads,
            max_position_embeddings=2048,
            rms_norm_eps=rms_norm_eps,
            use_cache=False,
        )
        self.llm_config._attn_implementation = "sdpa"
        return LlamaModel(self.llm_config)

    def _action_side(self) -> ActionModel:
        """A new diffusion transformer that reads the cognition feature."""
        config = self.settings
        return ActionModel(
            DiT(
                action_dim=config.action_dim,
                chunk_size=config.chunk_size,
                condition_size=config.language_width,
                hidden_size=config.action_width,
                depth=config.action_depth,
                num_heads=config.action_heads,
            )
        )

    @classmethod
    def from_config(cls, config: Mapping[str, Any], files: Mapping[str, bytes], *, empty: bool = False) -> Self:
        """See `Policy.from_config`."""
        settings = cls.settings_type.from_json(config, cls.family)
        if TOKENIZER_FILE not in files:
            raise InvalidInputError(
                f"a CogACT policy must come with {TOKENIZER_FILE}, got {sorted(files)}. Add the file."
            )
        tokenizer = Tokenizer.from_str(files[TOKENIZER_FILE].decode())
        if not empty:
            policy = cls(settings, tokenizer)
            policy._initialize()
            return policy
        with torch.device("meta"):
            policy = cls(settings, tokenizer)
        policy._create_buffers()
        return policy

    def config(self) -> dict[str, Any]:
        """See `Policy.config`."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self.settings).items()}

    def files(self) -> dict[str, bytes]:
        """See `Policy.files`."""
        return {TOKENIZER_FILE: self.tokenizer.to_str().encode()}

    def interfaces(self) -> tuple[Interface, ...]:
        """The cognition feature, which the DiT's condition embedder reads; a residual stream and a norm write it."""
        return (Interface(CONDITION, Tap(CONDITION), (IntoConsumers((CONDITION,), (UNCONDITION,)),)),)

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
        """Token ids int64 (b, length), padded at the end, and the index of the last real token of each row."""
        settings = self.settings
        rows = [
            [*settings.prompt_prefix, *self.tokenizer.encode(prompt(text)).ids, *settings.prompt_suffix]
            for text in instructions
        ]
        length = max(len(row) for row in rows)
        ids = torch.tensor([row + [0] * (length - len(row)) for row in rows], device=self.device)
        last = torch.tensor([len(row) - 1 for row in rows], device=self.device)
        return ids, last

    def _image(self, batch: Batch, camera: str) -> Float[Tensor, "b 3 h w"]:
        """The images of a camera; refuses those that do not have the policy's size."""
        image, size = batch[camera_key(camera)], self.settings.cameras[camera]
        if image.shape[1:] != (3, size, size):
            raise InvalidInputError(
                f"images of camera {camera!r} must have shape (b, 3, {size}, {size}), got {tuple(image.shape)}. "
                "Render or resize them to the policy's size."
            )
        return image


def register_action_buffers(policy: nn.Module, values: Mapping[str, tuple[float, ...]], mask: tuple[bool, ...]) -> None:
    """(Re)creates normalisation constants as buffers that are no part of the weights."""
    for label, value in values.items():
        policy.register_buffer(label, torch.tensor(value, dtype=torch.float32), persistent=False)
    policy.register_buffer("action_mask", torch.tensor(mask, dtype=torch.bool), persistent=False)
