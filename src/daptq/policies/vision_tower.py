"""A small vision tower: convolutional stem, transformer blocks on its coarse grid, and spatial-softmax keypoints.

The stem gives the bias towards localisation that a patch embedding would have to learn; the keypoints give image
coordinates finer than a token. The tower knows nothing of instructions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import SiglipVisionConfig
from transformers.models.siglip.modeling_siglip import SiglipEncoder

from daptq.layers.transformer_stack import PreNormBlock, Stack

STEM_STRIDE = 16
NORM_GROUPS = 8


class ConvStage(nn.Module):
    """Stride-2 convolution, group norm, GELU: halves the resolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=2, padding=1)
        self.norm = nn.GroupNorm(NORM_GROUPS, out_channels)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h2 w2"]:
        """Runs the module."""
        return nn.functional.gelu(self.norm(self.conv(x)))


class Keypoints(nn.Module):
    """Expected image coordinates in [-1, 1] under the spatial softmax of learned heat maps."""

    def __init__(self, channels: int, count: int) -> None:
        super().__init__()
        self.heatmaps = nn.Conv2d(channels, count, kernel_size=1)
        self.temperature = nn.Parameter(torch.ones(count))

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b two_count"]:
        """Runs the module."""
        logits = self.heatmaps(features) * self.temperature.view(1, -1, 1, 1)
        height, width = logits.shape[-2:]
        probabilities = logits.flatten(2).softmax(dim=-1).view_as(logits)
        rows = torch.linspace(-1, 1, height, device=features.device, dtype=features.dtype)
        columns = torch.linspace(-1, 1, width, device=features.device, dtype=features.dtype)
        y = (probabilities.sum(dim=3) * rows).sum(dim=2)
        x = (probabilities.sum(dim=2) * columns).sum(dim=2)
        return torch.cat([x, y], dim=1)


class VisionTower(nn.Module):
    """One camera's tower.

    Args:
        image_size: Edge length [px] of the square image, a multiple of 16.
        channels: Channels of the four stem stages; the last is the transformer's width.
        depth, num_heads, mlp_ratio: The transformer blocks.
        keypoints: Number of heat maps, taken from the third stage (stride 8).
    """

    def __init__(
        self,
        *,
        image_size: int,
        channels: tuple[int, int, int, int],
        depth: int,
        num_heads: int,
        mlp_ratio: float,
        keypoints: int,
    ) -> None:
        super().__init__()
        width = channels[-1]
        inputs = (3, *channels[:-1])
        self.stem = nn.ModuleList([ConvStage(a, b) for a, b in zip(inputs, channels, strict=True)])
        self.keypoints = Keypoints(channels[2], keypoints)
        self.grid = image_size // STEM_STRIDE
        self.position_embedding = nn.Parameter(torch.empty(1, self.grid**2, width))
        config = SiglipVisionConfig(
            hidden_size=width,
            intermediate_size=int(width * mlp_ratio),
            num_hidden_layers=depth,
            num_attention_heads=num_heads,
        )
        config._attn_implementation = "sdpa"
        self.encoder = SiglipEncoder(cast("Any", config))  # annotated with the joint text-and-image configuration
        self.post_layernorm = nn.LayerNorm(width)
        self._stack = Stack(blocks=self._parts, heads=num_heads, epsilon=config.layer_norm_eps)

    def _parts(self) -> Iterator[PreNormBlock]:
        """The transformer blocks by their modules."""
        for module in self.encoder.layers:
            block: Any = module
            attention, perceptron = block.self_attn, block.mlp
            yield PreNormBlock(
                norms=(block.layer_norm1, block.layer_norm2),
                projections=(attention.q_proj, attention.k_proj, attention.v_proj),
                output=attention.out_proj,
                expansions=(perceptron.fc1,),
                contraction=perceptron.fc2,
                parents=(self.encoder, block, attention, perceptron),
            )

    def forward(
        self, image: Float[Tensor, "b 3 h w"]
    ) -> tuple[Float[Tensor, "b tokens width"], Float[Tensor, "b two_count"]]:
        """Image in [0, 1] to patch features (row-major grid) and keypoint coordinates."""
        x = image * 2 - 1
        for stage in self.stem[:3]:
            x = stage(x)
        keypoints = self.keypoints(x)
        tokens = self.stem[3](x).flatten(2).transpose(1, 2) + self.position_embedding
        features = self._stack.run(tokens)
        if features is None:
            features = self.encoder(inputs_embeds=tokens).last_hidden_state
        return self.post_layernorm(features), keypoints


def pixel_shuffle(tokens: Float[Tensor, "b tokens width"], grid: int) -> Float[Tensor, "b fewer wider"]:
    """Joins each 2 x 2 neighbourhood of a row-major `grid` x `grid` map into one token of four times the width."""
    batch, _, width = tokens.shape
    half = grid // 2
    blocks = tokens.view(batch, half, 2, half, 2, width).permute(0, 1, 3, 2, 4, 5)
    return blocks.reshape(batch, half * half, 4 * width)
