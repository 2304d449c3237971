"""The CogACT family: vision towers, projector, Llama language model, and a DiT on the cognition feature.

The language model reads image tokens, proprioception (optional; the public model has none) and the prompt; its last
hidden state at the last prompt token, the *cognition feature*, is all that the action head sees. This module knows
nothing of quantization; it only names the layers and the interface between perception and action.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Float
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from typing_extensions import Self

from daptq.errors import InvalidInputError
from daptq.policies._base import (
    ACTION,
    IMAGE_PREFIX,
    STATE,
    TASK,
    Batch,
    Block,
    DenoisingStep,
    Interface,
    NoisePrediction,
    Policy,
)
from daptq.policies._cogact_config import CogACTConfig
from daptq.policies._diffusion import add_noise, ddim_sample, squared_cosine_alphas
from daptq.policies._dit import DiT
from daptq.policies._tokenizer import SPECIAL_TOKENS, prompt, train_tokenizer
from daptq.policies._vision import VisionTower, pixel_shuffle

TOKENIZER_FILE = "tokenizer.json"


class Projector(nn.Module):
    """Three-layer GELU projector from vision features to the language model's width."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_features, out_features)
        self.fc2 = nn.Linear(out_features, out_features)
        self.fc3 = nn.Linear(out_features, out_features)

    def forward(self, x: Float[Tensor, "b tokens width"]) -> Float[Tensor, "b tokens language"]:
        """Features of joined patches to language-model tokens."""
        hidden = nn.functional.gelu(self.fc2(nn.functional.gelu(self.fc1(x))))
        projected: Tensor = self.fc3(hidden)
        return projected


class ActionModel(nn.Module):
    """Holder of the DiT under the name that the public weights give it (``action_model.net``)."""

    def __init__(self, net: DiT) -> None:
        super().__init__()
        self.net = net


class CogACTPolicy(Policy):
    """A CogACT policy; see `CogACTConfig` for its sizes."""

    family: ClassVar[str] = "cogact"
    action_low: Tensor
    action_high: Tensor
    action_mask: Tensor
    state_mean: Tensor
    state_std: Tensor

    def __init__(self, config: CogACTConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.settings = config
        self.tokenizer = tokenizer
        self.name = config.name
        self.cameras = dict(config.cameras)
        self.action_dim, self.chunk_size = config.action_dim, config.chunk_size
        self.n_action_steps = config.n_action_steps
        self.denoising_steps, self.denoising_step = config.denoising_steps, DenoisingStep()
        width = config.language_width
        self.vision_backbone = nn.ModuleDict(
            {
                camera: VisionTower(
                    image_size=size,
                    channels=config.vision_channels,
                    depth=config.vision_depth,
                    num_heads=config.vision_heads,
                    mlp_ratio=config.vision_mlp_ratio,
                    keypoints=config.keypoints,
                )
                for camera, size in config.cameras.items()
            }
        )
        self.projector = Projector(4 * config.vision_channels[-1], width)
        self.keypoint_projector = nn.ModuleDict(
            {camera: nn.Linear(2 * config.keypoints, width) for camera in config.cameras}
        )
        self.state_projector = nn.Linear(config.state_dim, width) if config.state_dim else None
        self.llm_config = LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=width,
            intermediate_size=config.language_mlp,
            num_hidden_layers=config.language_depth,
            num_attention_heads=config.language_heads,
            num_key_value_heads=config.language_heads,
            max_position_embeddings=2048,
            use_cache=False,
        )
        self.llm_config._attn_implementation = "sdpa"
        self.llm_backbone = LlamaModel(self.llm_config)
        self.action_model = ActionModel(
            DiT(
                action_dim=config.action_dim,
                chunk_size=config.chunk_size,
                condition_size=width,
                hidden_size=config.action_width,
                depth=config.action_depth,
                num_heads=config.action_heads,
            )
        )
        self.alphas = squared_cosine_alphas(config.diffusion_steps)
        self._create_buffers()
        self.eval()

    def _create_buffers(self) -> None:
        """(Re)creates what is not a parameter; after construction on the meta device these must become real."""
        self.llm_backbone.rotary_emb = LlamaRotaryEmbedding(config=self.llm_config)
        for label in ("action_low", "action_high", "state_mean", "state_std"):
            self.register_buffer(
                label, torch.tensor(getattr(self.settings, label), dtype=torch.float32), persistent=False
            )
        self.register_buffer("action_mask", torch.tensor(self.settings.action_mask, dtype=torch.bool), persistent=False)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], files: Mapping[str, bytes], *, empty: bool = False) -> Self:
        """See `Policy.from_config`."""
        settings = CogACTConfig.from_json(config)
        if TOKENIZER_FILE not in files:
            raise InvalidInputError(
                f"a CogACT policy must come with {TOKENIZER_FILE}, got {sorted(files)}. Add the file."
            )
        tokenizer = Tokenizer.from_str(files[TOKENIZER_FILE].decode())
        if not empty:
            policy = cls(settings, tokenizer)
            initialize(policy)
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

    def blocks(self) -> tuple[Block, ...]:
        """See `Policy.blocks`."""
        net = "action_model.net"
        vision = [Block(name=f"vision_backbone.{camera}", role="vision") for camera in self.cameras]
        connector = [Block(name="projector", role="connector")]
        connector += [Block(name=f"keypoint_projector.{camera}", role="connector") for camera in self.cameras]
        if self.state_projector is not None:
            connector.append(Block(name="state_projector", role="connector"))
        language = [
            Block(name=f"llm_backbone.layers.{i}", role="language") for i in range(self.settings.language_depth)
        ]
        embedders = [f"{net}.x_embedder", f"{net}.t_embedder", f"{net}.z_embedder"]
        stack = [f"{net}.blocks.{i}" for i in range(self.settings.action_depth)]
        head = [Block(name=name, role="action_head") for name in (*embedders, *stack, f"{net}.final_layer")]
        return (*vision, *connector, *language, *head)

    def interfaces(self) -> tuple[Interface, ...]:
        """The cognition feature: last language layer (through residual and norm) to the DiT's condition embedder."""
        return (
            Interface(
                producer=f"llm_backbone.layers.{self.settings.language_depth - 1}.mlp.down_proj",
                observed="action_model.net.z_embedder.linear",
                consumer="action_model.net.z_embedder.linear",
                exact_producer=False,
                constants=("action_model.net.z_embedder.uncondition",),
            ),
        )

    def perceive(self, batch: Batch) -> tuple[Float[Tensor, "b language"], Float[Tensor, "b image_tokens language"]]:
        """The cognition feature, and the projected image tokens that the language model read."""
        image_tokens = self._image_tokens(batch)
        ids, last = self._prompt_ids(batch[TASK])
        embedded = self.llm_backbone.embed_tokens(ids)
        start = len(self.settings.prompt_prefix)
        parts = [embedded[:, :start], image_tokens]
        if self.state_projector is not None:
            state = (batch[STATE] - self.state_mean) / self.state_std
            parts.append(self.state_projector(state).unsqueeze(1))
        parts.append(embedded[:, start:])
        inputs = torch.cat(parts, dim=1)
        # Padding stands behind the last token, where causal attention cannot see it: no mask is needed.
        hidden = self.llm_backbone(inputs_embeds=inputs, use_cache=False).last_hidden_state
        positions = last + inputs.shape[1] - ids.shape[1]
        return hidden[torch.arange(len(positions), device=hidden.device), positions], image_tokens

    def predict_chunk(
        self, batch: Batch, generator: torch.Generator | Sequence[torch.Generator]
    ) -> Float[Tensor, "b chunk action"]:
        """See `Policy.predict_chunk`: DDIM with classifier-free guidance, then un-normalisation."""
        return self.unnormalize(self._sample(batch, generator))

    def denoised_chunk(
        self, batch: Batch, generator: torch.Generator | Sequence[torch.Generator]
    ) -> Float[Tensor, "b chunk action"]:
        """See `Policy.denoised_chunk`: un-normalised linearly; the gripper as 2 x - 1, whose threshold is 0."""
        actions = self._sample(batch, generator)
        scaled = self.action_low + 0.5 * (actions + 1) * (self.action_high - self.action_low)
        return torch.where(self.action_mask, scaled, 2 * actions - 1)

    @property
    def action_unit(self) -> Float[Tensor, " action"]:
        """See `Policy.action_unit`."""
        half = 0.5 * (self.action_high - self.action_low)
        return torch.where(self.action_mask, half, torch.full_like(half, 2.0))

    def _sample(
        self, batch: Batch, generator: torch.Generator | Sequence[torch.Generator]
    ) -> Float[Tensor, "b chunk action"]:
        """Normalised action chunks."""
        cognition, _ = self.perceive(batch)
        shape = (self.chunk_size, self.action_dim)
        if isinstance(generator, torch.Generator):
            noise = torch.randn(len(cognition), *shape, generator=generator)
        else:
            noise = torch.stack([torch.randn(*shape, generator=one) for one in generator])
        return self.denoise(cognition, noise.to(cognition))

    def denoise(
        self, cognition: Float[Tensor, "b language"], noise: Float[Tensor, "b chunk action"]
    ) -> Float[Tensor, "b chunk action"]:
        """Normalised action chunk from the cognition feature and the start of the diffusion."""
        condition = cognition.unsqueeze(1)
        net, scale = self.action_model.net, self.settings.guidance_scale

        def predict(sample: Tensor, timestep: int, step: int) -> Tensor:
            self.denoising_step.index = step
            timesteps = torch.full((len(sample),), timestep, device=sample.device)
            if scale == 1.0:
                return net.forward(sample, timesteps, condition)
            return net.guided(sample, timesteps, condition, scale)

        return ddim_sample(predict, noise, self.alphas, self.settings.denoising_steps)

    def predict_noise(self, batch: Batch, generator: torch.Generator) -> NoisePrediction:
        """See `Policy.predict_noise`: the conditional branch, at uniformly drawn diffusion steps."""
        cognition, _ = self.perceive(batch)
        actions = self.normalize(batch[ACTION])
        noise = torch.randn(actions.shape, generator=generator).to(actions)
        timesteps = torch.randint(0, self.settings.diffusion_steps, (len(actions),), generator=generator).to(
            actions.device
        )
        noisy = add_noise(actions, noise, timesteps, self.alphas)
        predicted = self.action_model.net(noisy, timesteps, cognition.unsqueeze(1))
        return NoisePrediction(predicted=predicted, noise=noise)

    def normalize(self, actions: Float[Tensor, "b chunk action"]) -> Float[Tensor, "b chunk action"]:
        """Physical units to [-1, 1] between the quantiles; the gripper's -1 / +1 to 0 / 1."""
        scaled = 2 * (actions - self.action_low) / (self.action_high - self.action_low) - 1
        return torch.where(self.action_mask, scaled.clamp(-1, 1), (actions > 0).to(actions))

    def unnormalize(self, actions: Float[Tensor, "b chunk action"]) -> Float[Tensor, "b chunk action"]:
        """Inverse of `normalize`, with actions clipped to [-1, 1] and the gripper thresholded at 0.5."""
        scaled = 0.5 * (actions.clamp(-1, 1) + 1) * (self.action_high - self.action_low) + self.action_low
        return torch.where(self.action_mask, scaled, torch.where(actions >= 0.5, 1.0, -1.0).to(actions))

    def example_batch(self, seed: int) -> Batch:
        """See `Policy.example_batch`: two samples."""
        generator = torch.Generator().manual_seed(seed)
        batch: Batch = {TASK: ["put the spoon on the towel", "stack the green block"]}
        for camera, size in self.cameras.items():
            batch[IMAGE_PREFIX + camera] = torch.rand(2, 3, size, size, generator=generator)
        batch[STATE] = torch.randn(2, self.settings.state_dim, generator=generator)
        uniform = torch.rand(2, self.chunk_size, self.action_dim, generator=generator) * 2 - 1
        batch[ACTION] = self.unnormalize(uniform)
        return batch

    def towers(self) -> dict[str, VisionTower]:
        """The vision tower of each camera."""
        return {camera: cast("VisionTower", tower) for camera, tower in self.vision_backbone.items()}

    def _image_tokens(self, batch: Batch) -> Float[Tensor, "b image_tokens language"]:
        tokens = []
        for camera, tower in self.towers().items():
            image, size = batch[IMAGE_PREFIX + camera], self.cameras[camera]
            if image.shape[1:] != (3, size, size):
                raise InvalidInputError(
                    f"images of camera {camera!r} must have shape (b, 3, {size}, {size}), got {tuple(image.shape)}. "
                    "Render or resize them to the policy's size."
                )
            features, keypoints = tower(image)
            tokens.append(self.projector(pixel_shuffle(features, tower.grid)))
            tokens.append(self.keypoint_projector[camera](keypoints).unsqueeze(1))
        return torch.cat(tokens, dim=1)

    def _prompt_ids(self, instructions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids int64 (b, length), padded behind, and the index of the last real token of each row."""
        rows = [
            [*self.settings.prompt_prefix, *self.tokenizer.encode(prompt(text)).ids, *self.settings.prompt_suffix]
            for text in instructions
        ]
        length = max(len(row) for row in rows)
        ids = torch.tensor([row + [0] * (length - len(row)) for row in rows], device=self.device)
        last = torch.tensor([len(row) - 1 for row in rows], device=self.device)
        return ids, last


POLICY = CogACTPolicy


def tiny(seed: int = 0) -> CogACTPolicy:
    """A random CogACT policy of 0.2 M parameters for tests and examples; float32."""
    tokenizer = train_tokenizer(["put the spoon on the towel", "stack the green block on the yellow block"], 300)
    config = CogACTConfig(
        name="tiny",
        cameras={"front": 64},
        state_dim=7,
        vision_channels=(8, 16, 16, 32),
        vision_depth=1,
        vision_heads=2,
        vision_mlp_ratio=2.0,
        keypoints=8,
        language_width=48,
        language_depth=2,
        language_heads=2,
        language_mlp=96,
        vocab_size=tokenizer.get_vocab_size(),
        action_width=32,
        action_depth=4,
        action_heads=2,
        action_low=(-0.05, -0.05, -0.05, -0.2, -0.2, -0.2, -1.0),
        action_high=(0.05, 0.05, 0.05, 0.2, 0.2, 0.2, 1.0),
        action_mask=(True, True, True, True, True, True, False),
        state_mean=(0.0,) * 7,
        state_std=(1.0,) * 7,
        prompt_suffix=(SPECIAL_TOKENS.index("<act>"), SPECIAL_TOKENS.index("</s>")),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        policy = CogACTPolicy(config, tokenizer)
        initialize(policy)
        # A trained head's last layer is not zero: give the random one something to say.
        nn.init.normal_(policy.action_model.net.final_layer.linear.weight, std=0.2)
    return policy


def initialize(policy: CogACTPolicy) -> None:
    """Initialises the parameters that torch and transformers leave unset, from torch's global generator."""
    policy.action_model.net.initialize()
    for tower in policy.towers().values():
        nn.init.normal_(tower.position_embedding, std=0.02)
