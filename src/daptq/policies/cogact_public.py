"""The CogACT family as published: DINOv2 and SigLIP towers, Llama-2, and a DiT on the cognition feature.

Features of both towers at the same patch are joined and projected to one token each; the language model reads them
after its first token, then the prompt, and its last hidden state at the last token is the cognition feature. Modules
carry the public checkpoints' names, so that a checkpoint is read by names alone (see `_cogact_public_files`). There is
no proprioception. This module knows nothing of quantization; it only names the layers and the interface.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from typing_extensions import Self

from daptq.errors import InvalidInputError
from daptq.observations import ACTION, TASK, camera_key
from daptq.policies._cogact_public_files import FOREIGN_FILES, is_public, read_public
from daptq.policies._config import config_from_json
from daptq.policies._vit import ViT
from daptq.policies.cogact_family import CogACTConfig, CogACTFamily, register_action_buffers
from daptq.policies.contract import Batch, Block
from daptq.policies.placement import place_tensors
from daptq.policies.tokenizer import SPECIAL_TOKENS, train_tokenizer

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
class PublicCogACTConfig(CogACTConfig):
    """Sizes and conventions; the defaults are those of the public checkpoints. See `CogACTConfig`.

    Attributes:
        cameras: The one camera, and the image's edge length [px], a multiple of `patch_size`.
        patch_size: Edge length [px] of a patch.
        registers: Register tokens of DINOv2.
        dino, siglip: The towers.
    """

    patch_size: int = 14
    registers: int = 4
    dino: TowerConfig = TowerConfig(width=1024, depth=24, heads=16, mlp=4096)
    siglip: TowerConfig = TowerConfig(width=1152, depth=27, heads=16, mlp=4304)
    language_width: int = 4096
    language_depth: int = 32
    language_heads: int = 32
    language_mlp: int = 11008
    vocab_size: int = 32064
    prompt_suffix: tuple[int, ...] = (29871, 2)
    action_width: int = 768
    action_depth: int = 12
    action_heads: int = 12

    def __post_init__(self) -> None:
        sizes = list(self.cameras.values())
        if len(sizes) != 1 or sizes[0] <= 0 or sizes[0] % self.patch_size:
            raise InvalidInputError(
                f"cameras must name one camera whose image size is a positive multiple of {self.patch_size}, got "
                f"{dict(self.cameras)}. Choose for example 224."
            )
        super().__post_init__()

    @classmethod
    def from_json(cls, config: Mapping[str, Any], label: str) -> Self:
        """See `CogACTConfig.from_json`; the towers are objects of their own."""
        towers = {
            tower: config_from_json(TowerConfig, config[tower], f"{tower} of {label}")
            for tower in ("dino", "siglip")
            if isinstance(config.get(tower), Mapping)
        }
        return super().from_json({**config, **towers}, label)


class VisionBackbone(nn.Module):
    """Both towers on the same image; features of the same patch are joined."""

    def __init__(self, config: PublicCogACTConfig) -> None:
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
        return self.projector(x)


class PublicCogACTPolicy(CogACTFamily):
    """A CogACT policy of the public architecture; see `PublicCogACTConfig` for its sizes."""

    family: ClassVar[str] = "cogact-public"
    foreign_files: ClassVar[tuple[str, ...]] = FOREIGN_FILES
    settings_type = PublicCogACTConfig
    settings: PublicCogACTConfig

    def __init__(self, config: PublicCogACTConfig, tokenizer: Tokenizer) -> None:
        super().__init__(config, tokenizer)
        self.state_dim = 0
        width = config.language_width
        self.vision_backbone = VisionBackbone(config)
        self.projector = Projector(config.dino.width + config.siglip.width, width)
        self.llm_backbone = self._language_model(rms_norm_eps=1e-5)
        self.action_model = self._action_side()
        self._create_buffers()
        self.eval()

    def _create_buffers(self) -> None:
        """See `CogACTFamily`."""
        self.llm_backbone.rotary_emb = LlamaRotaryEmbedding(config=self.llm_config)
        limits = {"action_low": self.settings.action_low, "action_high": self.settings.action_high}
        register_action_buffers(self, limits, self.settings.action_mask)

    def _initialize(self) -> None:
        """See `CogACTFamily`."""
        self.action_model.net.initialize()
        self.vision_backbone.dino_featurizer.initialize()
        self.vision_backbone.siglip_featurizer.initialize()

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

    def cognition(self, batch: Batch) -> Float[Tensor, "b language"]:
        """See `CognitionPolicy.cognition`."""
        (camera,) = self.settings.cameras
        image_tokens = self.projector(self.vision_backbone(self._image(batch, camera)))
        ids, last = self.prompt_ids(batch[TASK])
        embedded = self.llm_backbone.embed_tokens(ids)
        start = len(self.settings.prompt_prefix)
        inputs = torch.cat([embedded[:, :start], image_tokens, embedded[:, start:]], dim=1)
        # Padding follows the last token, where causal attention cannot see it: no mask is needed.
        hidden: Tensor = self.llm_backbone(inputs_embeds=inputs, use_cache=False).last_hidden_state
        positions = last + image_tokens.shape[1]
        return hidden[torch.arange(len(positions), device=hidden.device), positions]

    def example_batch(self, seed: int) -> Batch:
        """See `Policy.example_batch`: two samples."""
        generator = torch.Generator().manual_seed(seed)
        ((camera, size),) = self.settings.cameras.items()
        uniform = torch.rand(2, self.chunk_size, self.action_dim, generator=generator) * 2 - 1
        return {
            TASK: ["put the spoon on the towel", "stack the green block"],
            camera_key(camera): torch.rand(2, 3, size, size, generator=generator),
            ACTION: self.unnormalize(uniform),
        }

    @classmethod
    def tiny(cls, seed: int = 0) -> Self:
        """See `Policy.tiny`: a random policy of 0.4 M parameters."""
        tokenizer = train_tokenizer(["put the spoon on the towel", "stack the green block on the yellow block"], 300)
        config = PublicCogACTConfig(
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
            policy = cls(config, tokenizer)
            policy._initialize()
            # A trained head's last layer is not zero: make the output of the random one non-trivial.
            nn.init.normal_(policy.action_model.net.final_layer.linear.weight, std=0.2)
        return policy

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        """See `Policy.recognises`."""
        return is_public(folder)

    @classmethod
    def read_foreign(cls, folder: Path, *, dataset: str | None = None, stream: bool = False) -> Self:
        """See `Policy.read_foreign`: a folder of a public CogACT checkpoint.

        Args:
            folder: The folder.
            dataset: Data set whose statistics un-normalise the actions; None where there are those of one alone.
            stream: See `Policy.read_foreign`.

        Raises:
            ForeignArtifactError: A file is missing, or holds something else.
            InvalidInputError: There are several data sets and none was chosen, or a tokenizer is missing.
            UnknownNameError: There are no statistics of `dataset`.
            CorruptArtifactError: The file of weights is shorter than it says.
        """
        public = read_public(folder, dataset=dataset)
        policy = cls.from_config(public.config, public.files, empty=True)
        place_tensors(policy, public.tensors, folder, stream=stream)
        return policy.eval()


POLICY = PublicCogACTPolicy
FORMER_NAMES = ("cogact-prismatic",)


def _standardized(
    image: Float[Tensor, "b 3 h w"], mean: tuple[float, ...], deviation: tuple[float, ...]
) -> Float[Tensor, "b 3 h w"]:
    return (image - image.new_tensor(mean).view(1, 3, 1, 1)) / image.new_tensor(deviation).view(1, 3, 1, 1)
