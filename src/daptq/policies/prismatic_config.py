"""Sizes and conventions of a CogACT policy of the public architecture, validated when built.

It knows no tensor and no module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from typing_extensions import Self

from daptq.errors import InvalidInputError
from daptq.policies._config import check_action_dim, check_chunk, check_lengths, config_from_json


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
        action_dim: 7: an end-effector's delta pose and the gripper's command.
        chunk_size, n_action_steps: The action chunk and how much of it is executed.
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
        check_action_dim(self.action_dim)
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
