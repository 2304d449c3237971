"""A small CogACT policy: vision towers of its own, projector, Llama language model, and a DiT on the cognition feature.

The language model reads image tokens, proprioception (optional; the public model has none) and the prompt; its last
hidden state at the last prompt token, the *cognition feature*, is all that the action head sees. This module knows
nothing of quantization; it only names the layers and the interface between perception and action.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Float
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from typing_extensions import Self

from daptq.errors import InvalidInputError
from daptq.layers.transformer_stack import PreNormBlock, Stack
from daptq.observations import ACTION, STATE, TASK, camera_key
from daptq.policies._config import check_lengths
from daptq.policies.cogact_family import CogACTConfig, CogACTFamily, register_action_buffers
from daptq.policies.contract import Batch, Block
from daptq.policies.tokenizer import SPECIAL_TOKENS, train_tokenizer
from daptq.policies.vision_tower import VisionTower, pixel_shuffle

# The towers' convolutions halve the image four times, the projector joins 2 x 2 tokens.
IMAGE_MULTIPLE = 32


@dataclass(frozen=True, kw_only=True)
class SmallCogACTConfig(CogACTConfig):
    """Sizes and conventions of one policy; see `CogACTConfig`.

    Attributes:
        cameras: Image edge length [px] per camera, each a multiple of 32.
        state_dim: Size of the proprioception; 0 for none (as the public model).
        vision_channels, vision_depth, vision_heads, vision_mlp_ratio, keypoints: The vision towers.
        state_mean, state_std: Normalisation of the proprioception.
    """

    state_dim: int
    vision_channels: tuple[int, int, int, int]
    vision_depth: int
    vision_heads: int
    vision_mlp_ratio: float
    keypoints: int
    state_mean: tuple[float, ...] = ()
    state_std: tuple[float, ...] = ()
    prompt_suffix: tuple[int, ...] = (3, 2)

    def __post_init__(self) -> None:
        for camera, size in self.cameras.items():
            if size <= 0 or size % IMAGE_MULTIPLE:
                raise InvalidInputError(
                    f"image size of camera {camera!r} must be a positive multiple of {IMAGE_MULTIPLE}, got {size}. "
                    "Choose for example 96."
                )
        super().__post_init__()
        check_lengths({"state_mean": (self.state_mean, self.state_dim), "state_std": (self.state_std, self.state_dim)})


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
        return self.fc3(hidden)


class SmallCogACTPolicy(CogACTFamily):
    """A small CogACT policy; see `SmallCogACTConfig` for its sizes."""

    family: ClassVar[str] = "cogact-small"
    settings_type = SmallCogACTConfig
    settings: SmallCogACTConfig
    state_mean: Tensor
    state_std: Tensor

    def __init__(self, config: SmallCogACTConfig, tokenizer: Tokenizer) -> None:
        super().__init__(config, tokenizer)
        self.state_dim = config.state_dim
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
        self.llm_backbone = self._language_model(rms_norm_eps=1e-6)
        self._language_stack = Stack(
            blocks=self._language_parts,
            heads=config.language_heads,
            epsilon=self.llm_config.rms_norm_eps,
            centered=False,
            causal=True,
        )
        self.action_model = self._action_side()
        self._create_buffers()
        self.eval()

    def _create_buffers(self) -> None:
        """See `CogACTFamily`."""
        self.llm_backbone.rotary_emb = LlamaRotaryEmbedding(config=self.llm_config)
        labels = ("action_low", "action_high", "state_mean", "state_std")
        values = {label: getattr(self.settings, label) for label in labels}
        register_action_buffers(self, values, self.settings.action_mask)

    def _initialize(self) -> None:
        """See `CogACTFamily`."""
        self.action_model.net.initialize()
        for tower in self.towers().values():
            nn.init.normal_(tower.position_embedding, std=0.02)

    def blocks(self) -> tuple[Block, ...]:
        """See `Policy.blocks`."""
        vision = [Block(name=f"vision_backbone.{camera}", role="vision") for camera in self.settings.cameras]
        connector = [Block(name="projector", role="connector")]
        connector += [Block(name=f"keypoint_projector.{camera}", role="connector") for camera in self.settings.cameras]
        if self.state_projector is not None:
            connector.append(Block(name="state_projector", role="connector"))
        language = [
            Block(name=f"llm_backbone.layers.{i}", role="language") for i in range(self.settings.language_depth)
        ]
        return (*vision, *connector, *language, *self.action_blocks())

    def perceive(self, batch: Batch) -> tuple[Float[Tensor, "b language"], Float[Tensor, "b image_tokens language"]]:
        """The cognition feature, and the projected image tokens that the language model read."""
        image_tokens = self._image_tokens(batch)
        ids, last = self.prompt_ids(batch[TASK])
        embedded = self.llm_backbone.embed_tokens(ids)
        start = len(self.settings.prompt_prefix)
        parts = [embedded[:, :start], image_tokens]
        if self.state_projector is not None:
            state = (batch[STATE] - self.state_mean) / self.state_std
            parts.append(self.state_projector(state).unsqueeze(1))
        parts.append(embedded[:, start:])
        inputs = torch.cat(parts, dim=1)
        rows = torch.arange(len(last), device=inputs.device), last + inputs.shape[1] - ids.shape[1]
        # Padding follows the last token, where causal attention cannot see it: no mask is needed.
        fused = self._language_stack.run(inputs, self._rotary(inputs))
        if fused is not None:
            return self.llm_backbone.norm(fused[rows]), image_tokens
        hidden = self.llm_backbone(inputs_embeds=inputs, use_cache=False).last_hidden_state
        return hidden[rows], image_tokens

    def _rotary(self, inputs: Float[Tensor, "b t language"]) -> Float[Tensor, "2 t size"]:
        """Cosines and sines of the language model's rotary embedding."""
        positions = torch.arange(inputs.shape[1], device=inputs.device).unsqueeze(0)
        return torch.cat(self.llm_backbone.rotary_emb(inputs, positions))

    def _language_parts(self) -> Iterator[PreNormBlock]:
        """The language model's blocks by their modules."""
        for module in self.llm_backbone.layers:
            block: Any = module
            attention, perceptron = block.self_attn, block.mlp
            yield PreNormBlock(
                norms=(block.input_layernorm, block.post_attention_layernorm),
                projections=(attention.q_proj, attention.k_proj, attention.v_proj),
                output=attention.o_proj,
                expansions=(perceptron.gate_proj, perceptron.up_proj),
                contraction=perceptron.down_proj,
                parents=(self.llm_backbone, block, attention, perceptron),
            )

    def cognition(self, batch: Batch) -> Float[Tensor, "b language"]:
        """See `CognitionPolicy.cognition`."""
        return self.perceive(batch)[0]

    def example_batch(self, seed: int) -> Batch:
        """See `Policy.example_batch`: two samples."""
        generator = torch.Generator().manual_seed(seed)
        batch: Batch = {TASK: ["put the spoon on the towel", "stack the green block"]}
        for camera, size in self.settings.cameras.items():
            batch[camera_key(camera)] = torch.rand(2, 3, size, size, generator=generator)
        if self.state_dim:
            batch[STATE] = torch.randn(2, self.state_dim, generator=generator)
        uniform = torch.rand(2, self.chunk_size, self.action_dim, generator=generator) * 2 - 1
        batch[ACTION] = self.unnormalize(uniform)
        return batch

    @classmethod
    def tiny(cls, seed: int = 0) -> Self:
        """See `Policy.tiny`: a random CogACT policy of 0.2 M parameters."""
        tokenizer = train_tokenizer(["put the spoon on the towel", "stack the green block on the yellow block"], 300)
        config = SmallCogACTConfig(
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
            policy = cls(config, tokenizer)
            policy._initialize()
            # A trained head's last layer is not zero: make the output of the random one non-trivial.
            nn.init.normal_(policy.action_model.net.final_layer.linear.weight, std=0.2)
        return policy

    def towers(self) -> dict[str, VisionTower]:
        """The vision tower of each camera."""
        return {camera: cast("VisionTower", tower) for camera, tower in self.vision_backbone.items()}

    def _image_tokens(self, batch: Batch) -> Float[Tensor, "b image_tokens language"]:
        tokens = []
        for camera, tower in self.towers().items():
            features, keypoints = tower(self._image(batch, camera))
            tokens.append(self.projector(pixel_shuffle(features, tower.grid)))
            tokens.append(self.keypoint_projector[camera](keypoints).unsqueeze(1))
        return torch.cat(tokens, dim=1)


POLICY = SmallCogACTPolicy
FORMER_NAMES = ("cogact",)
