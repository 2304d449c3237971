"""Sizes and conventions of a CogACT policy, validated when built.

It knows no tensor and no module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from typing_extensions import Self

from daptq.errors import InvalidInputError
from daptq.policies._config import check_action_dim, check_chunk, check_lengths, config_from_json

# The towers' convolutions halve the image four times, the projector joins 2 x 2 tokens.
IMAGE_MULTIPLE = 32


@dataclass(frozen=True, kw_only=True)
class CogACTConfig:
    """Sizes and conventions of one CogACT policy.

    Attributes:
        name: Name of the policy.
        cameras: Image edge length [px] per camera, each a multiple of 32.
        state_dim: Size of the proprioception; 0 for none (as the public model).
        vision_channels, vision_depth, vision_heads, vision_mlp_ratio, keypoints: The vision towers.
        language_width, language_depth, language_heads, language_mlp: The Llama-style language model.
        vocab_size: Size of the tokenizer's vocabulary.
        prompt_prefix, prompt_suffix: Token ids around the prompt; the last one reads out the cognition feature.
        action_width, action_depth, action_heads: The DiT.
        action_dim: 7: an end-effector's delta pose and the gripper's command.
        chunk_size, n_action_steps: The action chunk and how much of it is executed.
        diffusion_steps, denoising_steps, guidance_scale: Training steps, DDIM steps, classifier-free guidance.
        action_low, action_high: 1 % and 99 % quantiles of the actions, physical units, per dimension.
        action_mask: Dimensions mapped from [-1, 1] to [low, high]; the others (gripper) are thresholded at 0.5.
        state_mean, state_std: Normalisation of the proprioception.
    """

    name: str
    cameras: Mapping[str, int]
    state_dim: int
    vision_channels: tuple[int, int, int, int]
    vision_depth: int
    vision_heads: int
    vision_mlp_ratio: float
    keypoints: int
    language_width: int
    language_depth: int
    language_heads: int
    language_mlp: int
    vocab_size: int
    action_width: int
    action_depth: int
    action_heads: int
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    action_mask: tuple[bool, ...]
    state_mean: tuple[float, ...] = ()
    state_std: tuple[float, ...] = ()
    action_dim: int = 7
    chunk_size: int = 16
    n_action_steps: int = 4
    diffusion_steps: int = 100
    denoising_steps: int = 10
    guidance_scale: float = 1.5
    prompt_prefix: tuple[int, ...] = (1,)
    prompt_suffix: tuple[int, ...] = (3, 2)

    def __post_init__(self) -> None:
        for camera, size in self.cameras.items():
            if size <= 0 or size % IMAGE_MULTIPLE:
                raise InvalidInputError(
                    f"image size of camera {camera!r} must be a positive multiple of {IMAGE_MULTIPLE}, got {size}. "
                    "Choose for example 96."
                )
        check_action_dim(self.action_dim)
        check_lengths(
            {
                "action_low": (self.action_low, self.action_dim),
                "action_high": (self.action_high, self.action_dim),
                "action_mask": (self.action_mask, self.action_dim),
                "state_mean": (self.state_mean, self.state_dim),
                "state_std": (self.state_std, self.state_dim),
            }
        )
        check_chunk(self.n_action_steps, self.chunk_size, self.diffusion_steps, self.denoising_steps)

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> Self:
        """Builds the configuration from a JSON object, naming what is missing or unknown."""
        return config_from_json(cls, config)
