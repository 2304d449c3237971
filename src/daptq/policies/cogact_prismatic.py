"""The CogACT family as published: DINOv2 and SigLIP towers, Llama-2, and a DiT on the cognition feature.

Features of both towers at the same patch are joined and projected to one token each; the language model reads them
behind its first token, then the prompt, and its last hidden state at the last token is the cognition feature. Modules
carry the public checkpoints' names, so that a checkpoint is read by names alone (see `_cogact_public`). There is no
proprioception. This module knows nothing of quantization; it only names the layers and the interface.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from typing_extensions import Self

from daptq.errors import InvalidInputError
from daptq.policies._base import ACTION, IMAGE_PREFIX, TASK, Batch, Block, DenoisingStep, Interface
from daptq.policies._cognition import CONDITION, UNCONDITION, ActionModel, CognitionPolicy, register_action_buffers
from daptq.policies._config import check_chunk, check_lengths, config_from_json
from daptq.policies._diffusion import squared_cosine_alphas
from daptq.policies._dit import DiT
from daptq.policies._tokenizer import SPECIAL_TOKENS, train_tokenizer
from daptq.policies._vit import ViT

TOKENIZER_FILE = "tokenizer.json"

# Mean and standard deviation of the pixels that each tower was trained on.
DINO_PIXELS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SIGLIP_PIXELS = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclass(frozen=True, kw_only=True)
class TowerConfig:
    """Size of a vision tower: width, blocks of the public model (the last is not run), heads, width of its MLP."""

    width: int
    depth: int
    heads: int
    mlp: int

    def __post_init__(self) -> None:
        if self.depth < 2 or self.width % self.heads:
            raise InvalidInputError(
                f"a vision tower must have 2 blocks or more and a width divisible by its heads, got {self.depth}, "
                f"width {self.width} and {self.heads} heads. Correct the configuration."
            )


@dataclass(frozen=True, kw_only=True)
class PrismaticConfig:
    """Sizes and conventions; the defaults are those of the public checkpoints.

    Attributes:
        name: Name of the policy.
        action_low, action_high: 1 % and 99 % quantiles of the actions, physical units, per dimension.
        action_mask: Dimensions mapped from [-1, 1] to [low, high]; the others (gripper) are thresholded at 0.5.
        cameras: The one camera, and the image's edge length [px], a multiple of `patch_size`.
        patch_size: Edge length [px] of a patch.
        registers: Register tokens of DINOv2.
        dino, siglip: The towers.
        language_width, language_depth, language_heads, language_mlp: The Llama model.
        vocab_size: Rows of its embedding.
        prompt_prefix, prompt_suffix: Token ids around the prompt; the last one reads out the cognition feature.
        action_width, action_depth, action_heads: The DiT.
        action_dim, chunk_size, n_action_steps: The action chunk and how much of it is executed.
        diffusion_steps, denoising_steps, guidance_scale: Training steps, DDIM steps, classifier-free guidance.
    """

    name: str
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    action_mask: tuple[bool, ...]
    cameras: Mapping[str, int]
    patch_size: int = 14
    registers: int = 4
    dino: TowerConfig = TowerConfig(width=1024, depth=24, heads=16, mlp=4096)
    siglip: TowerConfig = TowerConfig(width=1152, depth=27, heads=16, mlp=4304)
    language_width: int = 4096
    language_depth: int = 32
    language_heads: int = 32
    language_mlp: int = 11008
    vocab_size: int = 32064
    prompt_prefix: tuple[int, ...] = (1,)
    prompt_suffix: tuple[int, ...] = (29871, 2)
    action_width: int = 768
    action_depth: int = 12
    action_heads: int = 12
    action_dim: int = 7
    chunk_size: int = 16
    n_action_steps: int = 4
    diffusion_steps: int = 100
    denoising_steps: int = 10
    guidance_scale: float = 1.5

    def __post_init__(self) -> None:
        sizes = list(self.cameras.values())
        if len(sizes) != 1 or sizes[0] <= 0 or sizes[0] % self.patch_size:
            raise InvalidInputError(
                f"cameras must name one camera whose image size is a positive multiple of {self.patch_size}, got "
                f"{dict(self.cameras)}. Choose for example 224."
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
    def from_json(cls, config: Mapping[str, Any]) -> Self:
        """Builds the configuration from a JSON object, naming what is missing or unknown."""
        towers = {
            label: config_from_json(TowerConfig, config[label])
            for label in ("dino", "siglip")
            if isinstance(config.get(label), Mapping)
        }
        return config_from_json(cls, {**config, **towers})


class VisionBackbone(nn.Module):
    """Both towers on the same image; features of the same patch are joined."""

    def __init__(self, config: PrismaticConfig) -> None:
        super().__init__()
        (image_size,) = config.cameras.values()

        def tower(size: TowerConfig, registers: int | None) -> ViT:
            return ViT(
                image_size=image_size,
                patch_size=config.patch_size,
                width=size.width,
                depth=size.depth,
                num_heads=size.heads,
                mlp=size.mlp,
                registers=registers,
            )

        self.dino_featurizer = tower(config.dino, config.registers)
        self.siglip_featurizer = tower(config.siglip, None)

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b patches width"]:
        """Features of an image with values in [0, 1]."""
        towers = ((self.dino_featurizer, DINO_PIXELS), (self.siglip_featurizer, SIGLIP_PIXELS))
        return torch.cat([tower(_standardized(image, *pixels)) for tower, pixels in towers], dim=2)


class Projector(nn.Module):
    """Three linear layers with GELU between them, from joined vision features to the language model's width."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.projector = nn.Sequential(
            nn.Linear(in_features, 4 * in_features),
            nn.GELU(),
            nn.Linear(4 * in_features, out_features),
            nn.GELU(),
            nn.Linear(out_features, out_features),
        )

    def forward(self, x: Float[Tensor, "b patches width"]) -> Float[Tensor, "b patches language"]:
        """Tokens of the language model."""
        tokens: Tensor = self.projector(x)
        return tokens


class PrismaticCogACTPolicy(CognitionPolicy):
    """A CogACT policy of the public architecture; see `PrismaticConfig` for its sizes."""

    family: ClassVar[str] = "cogact-prismatic"

    def __init__(self, config: PrismaticConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.settings = config
        self.tokenizer = tokenizer
        self.name = config.name
        self.cameras = dict(config.cameras)
        self.action_dim, self.chunk_size = config.action_dim, config.chunk_size
        self.n_action_steps = config.n_action_steps
        self.denoising_steps, self.denoising_step = config.denoising_steps, DenoisingStep()
        width = config.language_width
        self.vision_backbone = VisionBackbone(config)
        self.projector = Projector(config.dino.width + config.siglip.width, width)
        self.llm_config = LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=width,
            intermediate_size=config.language_mlp,
            num_hidden_layers=config.language_depth,
            num_attention_heads=config.language_heads,
            num_key_value_heads=config.language_heads,
            max_position_embeddings=2048,
            rms_norm_eps=1e-5,
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
        limits = {"action_low": self.settings.action_low, "action_high": self.settings.action_high}
        register_action_buffers(self, limits, self.settings.action_mask)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], files: Mapping[str, bytes], *, empty: bool = False) -> Self:
        """See `Policy.from_config`."""
        settings = PrismaticConfig.from_json(config)
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
        settings = self.settings
        vision = [
            Block(name=f"vision_backbone.{tower}_featurizer.blocks.{i}", role="vision")
            for tower, size in (("dino", settings.dino), ("siglip", settings.siglip))
            for i in range(size.depth - 1)
        ]
        language = [Block(name=f"llm_backbone.layers.{i}", role="language") for i in range(settings.language_depth)]
        return (*vision, Block(name="projector", role="connector"), *language, *self.action_blocks())

    def interfaces(self) -> tuple[Interface, ...]:
        """The cognition feature: last language layer (through residual and norm) to the DiT's condition embedder."""
        return (
            Interface(
                producer=f"llm_backbone.layers.{self.settings.language_depth - 1}.mlp.down_proj",
                observed=CONDITION,
                consumer=CONDITION,
                exact_producer=False,
                constants=(UNCONDITION,),
            ),
        )

    @property
    def action_settings(self) -> PrismaticConfig:
        """See `CognitionPolicy.action_settings`."""
        return self.settings

    def cognition(self, batch: Batch) -> Float[Tensor, "b language"]:
        """See `CognitionPolicy.cognition`."""
        ((camera, size),) = self.cameras.items()
        image = batch[IMAGE_PREFIX + camera]
        if image.shape[1:] != (3, size, size):
            raise InvalidInputError(
                f"images of camera {camera!r} must have shape (b, 3, {size}, {size}), got {tuple(image.shape)}. "
                "Render or resize them to the policy's size."
            )
        image_tokens = self.projector(self.vision_backbone(image))
        ids, last = self.prompt_ids(batch[TASK])
        embedded = self.llm_backbone.embed_tokens(ids)
        start = len(self.settings.prompt_prefix)
        inputs = torch.cat([embedded[:, :start], image_tokens, embedded[:, start:]], dim=1)
        # Padding stands behind the last token, where causal attention cannot see it: no mask is needed.
        hidden: Tensor = self.llm_backbone(inputs_embeds=inputs, use_cache=False).last_hidden_state
        positions = last + image_tokens.shape[1]
        return hidden[torch.arange(len(positions), device=hidden.device), positions]

    def example_batch(self, seed: int) -> Batch:
        """See `Policy.example_batch`: two samples."""
        generator = torch.Generator().manual_seed(seed)
        ((camera, size),) = self.cameras.items()
        uniform = torch.rand(2, self.chunk_size, self.action_dim, generator=generator) * 2 - 1
        return {
            TASK: ["put the spoon on the towel", "stack the green block"],
            IMAGE_PREFIX + camera: torch.rand(2, 3, size, size, generator=generator),
            ACTION: self.unnormalize(uniform),
        }


POLICY = PrismaticCogACTPolicy


def tiny(seed: int = 0) -> PrismaticCogACTPolicy:
    """A random policy of 0.4 M parameters for tests and examples; float32."""
    tokenizer = train_tokenizer(["put the spoon on the towel", "stack the green block on the yellow block"], 300)
    config = PrismaticConfig(
        name="tiny-prismatic",
        action_low=(-0.05, -0.05, -0.05, -0.2, -0.2, -0.2, 0.0),
        action_high=(0.05, 0.05, 0.05, 0.2, 0.2, 0.2, 1.0),
        action_mask=(True, True, True, True, True, True, False),
        cameras={"primary": 28},
        patch_size=7,
        registers=2,
        dino=TowerConfig(width=16, depth=3, heads=2, mlp=32),
        siglip=TowerConfig(width=24, depth=3, heads=2, mlp=40),
        language_width=48,
        language_depth=2,
        language_heads=2,
        language_mlp=96,
        vocab_size=tokenizer.get_vocab_size(),
        prompt_suffix=(SPECIAL_TOKENS.index("<act>"), SPECIAL_TOKENS.index("</s>")),
        action_width=32,
        action_depth=4,
        action_heads=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        policy = PrismaticCogACTPolicy(config, tokenizer)
        initialize(policy)
        # A trained head's last layer is not zero: give the random one something to say.
        nn.init.normal_(policy.action_model.net.final_layer.linear.weight, std=0.2)
    return policy


def initialize(policy: PrismaticCogACTPolicy) -> None:
    """Initialises the parameters that torch and transformers leave unset, from torch's global generator."""
    policy.action_model.net.initialize()
    policy.vision_backbone.dino_featurizer.initialize()
    policy.vision_backbone.siglip_featurizer.initialize()


def _standardized(
    image: Float[Tensor, "b 3 h w"], mean: tuple[float, ...], deviation: tuple[float, ...]
) -> Float[Tensor, "b 3 h w"]:
    return (image - image.new_tensor(mean).view(1, 3, 1, 1)) / image.new_tensor(deviation).view(1, 3, 1, 1)
