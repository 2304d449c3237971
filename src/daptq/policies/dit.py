"""The diffusion transformer of CogACT, with the public model's parameter names and arithmetic.

Plain pre-norm transformer blocks; the condition (cognition feature plus timestep) is one token in front of the noisy
actions. The module does not know where the cognition feature comes from, nor the diffusion schedule.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from daptq.layers.transformer_stack import DiffusionEnds, PreNormBlock, Stack
from daptq.policies.diffusion import DDIMStep

FREQUENCY_SIZE = 256
EPSILON = 1e-6
MAX_PERIOD = 10000.0


def timestep_embedding(timesteps: Int[Tensor, " b"], size: int) -> Float[Tensor, "b size"]:
    """Sinusoidal features [cos, sin] of the timesteps, float32, `size` even."""
    half = size // 2
    frequencies = torch.exp(
        -math.log(MAX_PERIOD) * torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    )
    angles = timesteps[:, None].float() * frequencies[None]
    return torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)


class TimestepEmbedder(nn.Module):
    """Timestep to hidden vector through a two-layer perceptron on sinusoidal features."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCY_SIZE, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size))

    def forward(self, timesteps: Int[Tensor, " b"]) -> Float[Tensor, "b hidden"]:
        """Runs the module."""
        features = timestep_embedding(timesteps, FREQUENCY_SIZE)
        return self.mlp(features)


class ConditionEmbedder(nn.Module):
    """Projects the cognition feature; owns the learned vector that stands for "no condition"."""

    def __init__(self, condition_size: int, hidden_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(condition_size, hidden_size)
        self.uncondition = nn.Parameter(torch.empty(1, condition_size))

    def forward(self, condition: Float[Tensor, "b 1 condition"]) -> Float[Tensor, "b 1 hidden"]:
        """Runs the module."""
        return self.linear(condition)


class ActionEmbedder(nn.Module):
    """Projects each noisy action of the chunk."""

    def __init__(self, action_dim: int, hidden_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(action_dim, hidden_size)

    def forward(self, actions: Float[Tensor, "b t action"]) -> Float[Tensor, "b t hidden"]:
        """Runs the module."""
        return self.linear(actions)


class Attention(nn.Module):
    """Multi-head self-attention with one fused query-key-value projection."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Float[Tensor, "b t hidden"]) -> Float[Tensor, "b t hidden"]:
        """Runs the module."""
        batch, length, hidden = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.num_heads, hidden // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.proj(attended.transpose(1, 2).reshape(batch, length, hidden))


class Mlp(nn.Module):
    """Two linear layers around a tanh-approximated GELU."""

    def __init__(self, hidden_size: int, ratio: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, int(hidden_size * ratio))
        self.fc2 = nn.Linear(int(hidden_size * ratio), hidden_size)

    def forward(self, x: Float[Tensor, "b t hidden"]) -> Float[Tensor, "b t hidden"]:
        """Runs the module."""
        expanded = F.gelu(self.fc1(x), approximate="tanh")
        return self.fc2(expanded)


class DiTBlock(nn.Module):
    """Pre-norm attention and perceptron; the LayerNorms have no parameters."""

    def __init__(self, hidden_size: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=EPSILON)
        self.attn = Attention(hidden_size, num_heads)
        self.norm2 = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=EPSILON)
        self.mlp = Mlp(hidden_size, mlp_ratio)

    def forward(self, x: Float[Tensor, "b t hidden"]) -> Float[Tensor, "b t hidden"]:
        """Runs the module."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class FinalLayer(nn.Module):
    """LayerNorm and projection to the predicted noise."""

    def __init__(self, hidden_size: int, action_dim: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=EPSILON)
        self.linear = nn.Linear(hidden_size, action_dim)

    def forward(self, x: Float[Tensor, "b t hidden"]) -> Float[Tensor, "b t action"]:
        """Runs the module."""
        return self.linear(self.norm_final(x))


class DiT(nn.Module):
    """Predicts the noise of an action chunk from the noisy chunk, the timestep and the condition.

    Args:
        action_dim: Action dimensions.
        chunk_size: Actions per chunk; the transformer sees chunk_size + 1 tokens.
        condition_size: Size of the cognition feature.
        hidden_size, depth, num_heads, mlp_ratio: Size of the transformer (public sizes S / B / L: depth 6 / 12 / 24,
            width 384 / 768 / 1024, heads 4 / 12 / 16, ratio 4).
    """

    def __init__(
        self,
        *,
        action_dim: int,
        chunk_size: int,
        condition_size: int,
        hidden_size: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        # The public weights carry this layer although the public model never calls it.
        self.history_embedder = ActionEmbedder(action_dim, hidden_size)
        self.x_embedder = ActionEmbedder(action_dim, hidden_size)
        self.t_embedder = TimestepEmbedder(hidden_size)
        self.z_embedder = ConditionEmbedder(condition_size, hidden_size)
        self.positional_embedding = nn.Parameter(torch.empty(chunk_size + 1, hidden_size))
        self.blocks = nn.ModuleList([DiTBlock(hidden_size, num_heads, mlp_ratio) for _ in range(depth)])
        self.final_layer = FinalLayer(hidden_size, action_dim)
        self._stack = Stack(blocks=self._parts, heads=num_heads, epsilon=EPSILON)

    def _parts(self) -> Iterator[PreNormBlock]:
        """The blocks by their modules."""
        for module in self.blocks:
            block = cast("DiTBlock", module)
            yield PreNormBlock(
                norms=(block.norm1, block.norm2),
                projections=(block.attn.qkv,),
                output=block.attn.proj,
                expansions=(block.mlp.fc1,),
                contraction=block.mlp.fc2,
                parents=(block, block.attn, block.mlp),
            )

    def initialize(self) -> None:
        """Initialises as the public model: Xavier in the blocks, small normals at the inputs, zero at the output."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        embedders = (self.x_embedder.linear, self.history_embedder.linear, self.z_embedder.linear)
        for weight in (
            *(layer.weight for layer in embedders),
            *(w for w in self.t_embedder.parameters() if w.ndim == 2),
        ):
            nn.init.normal_(weight, std=0.02)
        nn.init.normal_(self.z_embedder.uncondition, std=0.02)
        nn.init.normal_(self.positional_embedding, std=self.positional_embedding.shape[1] ** -0.5)
        nn.init.zeros_(self.final_layer.linear.weight)

    def forward(
        self,
        noisy_actions: Float[Tensor, "b t action"],
        timesteps: Int[Tensor, " b"],
        condition: Float[Tensor, "b 1 condition"],
    ) -> Float[Tensor, "b t action"]:
        """Predicted noise; `condition` may be `z_embedder.uncondition` where guidance wants none."""
        actions = self.x_embedder(noisy_actions)
        token = self.t_embedder(timesteps).unsqueeze(1) + self.z_embedder(condition)
        hidden = torch.cat([token, actions], dim=1) + self.positional_embedding
        fused = self._stack.run(hidden)
        if fused is None:
            for block in self.blocks:
                hidden = block(hidden)
        projected: Tensor = self.final_layer(hidden if fused is None else fused)
        return projected[:, 1:]

    def guided(
        self,
        noisy_actions: Float[Tensor, "b t action"],
        timesteps: Int[Tensor, " b"],
        condition: Float[Tensor, "b 1 condition"],
        scale: float,
    ) -> Float[Tensor, "b t action"]:
        """Classifier-free guidance, eps = eps_u + scale (eps_c - eps_u), both halves in one pass."""
        unconditional = self.z_embedder.uncondition.to(condition.dtype).expand(condition.shape)
        doubled = self.forward(
            noisy_actions.repeat(2, 1, 1), timesteps.repeat(2), torch.cat([condition, unconditional])
        )
        conditioned, unconditioned = doubled.chunk(2)
        return unconditioned + scale * (conditioned - unconditioned)

    def denoise(
        self,
        noise: Float[Tensor, "b t action"],
        condition: Float[Tensor, "b 1 condition"],
        scale: float,
        steps: Sequence[DDIMStep],
    ) -> Float[Tensor, "b t action"] | None:
        """All steps of guided denoising in one operation, or None where the layers must be called as modules.

        Timesteps and conditions are embedded once and not in every step.
        """

        def tokens() -> Float[Tensor, "steps n hidden"]:
            timesteps = torch.tensor([step.timestep for step in steps], device=noise.device)
            conditions = condition
            if scale != 1.0:
                unconditional = self.z_embedder.uncondition.to(condition.dtype).expand(condition.shape)
                conditions = torch.cat([condition, unconditional])
            embedded: Tensor = self.z_embedder(conditions)
            times: Tensor = self.t_embedder(timesteps)
            return times.unsqueeze(1) + embedded.squeeze(1)

        ends = DiffusionEnds(
            embedder=self.x_embedder.linear,
            norm=self.final_layer.norm_final,
            last=self.final_layer.linear,
            parents=(self, self.x_embedder, self.final_layer),
            positions=self.positional_embedding,
            tokens=tokens,
            tokenizers=(self.t_embedder, self.z_embedder),
        )
        schedule = [factor for step in steps for factor in step.factors]
        return self._stack.denoise(noise, ends, guidance=scale, schedule=schedule)
