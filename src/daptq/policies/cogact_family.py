"""What the CogACT families share beside the action side: a Llama language model, its tokenizer, how a policy is built.

The language model's last hidden state at the last prompt token is the cognition feature. How pictures become tokens is
left to the families.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, ClassVar, Final

import torch
from jaxtyping import Float
from tokenizers import Tokenizer
from torch import Tensor
from transformers import LlamaConfig, LlamaModel
from typing_extensions import Self

from daptq.errors import InvalidInputError
from daptq.interfaces.contract import Interface, Tap
from daptq.interfaces.into_consumers import IntoConsumers
from daptq.observations import CameraSize, camera_key
from daptq.policies._cognition import CONDITION, UNCONDITION, ActionModel, CognitionPolicy
from daptq.policies.action_space import END_EFFECTOR_DELTA
from daptq.policies.cogact_config import CogACTConfig
from daptq.policies.contract import Batch, DenoisingStep
from daptq.policies.diffusion import squared_cosine_alphas
from daptq.policies.dit import DiT
from daptq.policies.prismatic_config import PrismaticConfig

__all__ = ["TOKENIZER_FILE", "CogACTFamily"]

TOKENIZER_FILE: Final = "tokenizer.json"


class CogACTFamily(CognitionPolicy):
    """A policy that perceives with a Llama language model and acts as CogACT does.

    Args:
        config: Sizes and conventions.
        tokenizer: Of the instruction.

    Attributes:
        settings: Sizes and conventions.
        llm_backbone: The language model.
    """

    settings_type: ClassVar[type[CogACTConfig | PrismaticConfig]]
    settings: CogACTConfig | PrismaticConfig
    llm_backbone: LlamaModel

    def __init__(self, config: CogACTConfig | PrismaticConfig, tokenizer: Tokenizer) -> None:
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
        settings = cls.settings_type.from_json(config)
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

    def _image(self, batch: Batch, camera: str) -> Float[Tensor, "b 3 h w"]:
        """The images of a camera; refuses those that do not have the policy's size."""
        image, size = batch[camera_key(camera)], self.settings.cameras[camera]
        if image.shape[1:] != (3, size, size):
            raise InvalidInputError(
                f"images of camera {camera!r} must have shape (b, 3, {size}, {size}), got {tuple(image.shape)}. "
                "Render or resize them to the policy's size."
            )
        checked: Tensor = image
        return checked
