"""A plain vision transformer with timm's parameter names: DINOv2 with registers, and SigLIP.

It returns the patch features of the second-to-last block, as Prismatic vision-language models read them, so the last
block, the final norm and the pooling head of the public towers are not built. The module knows neither normalisation
constants nor what reads the features.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from daptq.policies.dit import Attention

NORM_EPSILON = 1e-6


class PatchEmbed(nn.Module):
    """Patches to tokens."""

    def __init__(self, patch_size: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b patches width"]:
        return self.proj(image).flatten(2).transpose(1, 2)


class LayerScale(nn.Module):
    """Learned factor of each channel of a residual branch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "b t width"]) -> Float[Tensor, "b t width"]:
        return x * self.gamma


class Mlp(nn.Module):
    """Two linear layers around an exact GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "b t width"]) -> Float[Tensor, "b t width"]:
        return self.fc2(nn.functional.gelu(self.fc1(x)))


class ViTBlock(nn.Module):
    """Pre-norm attention and perceptron, their outputs scaled where the model has layer scale."""

    def __init__(self, width: int, num_heads: int, hidden: int, *, layer_scale: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.attn = Attention(width, num_heads)
        self.ls1 = LayerScale(width) if layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.mlp = Mlp(width, hidden)
        self.ls2 = LayerScale(width) if layer_scale else nn.Identity()

    def forward(self, x: Float[Tensor, "b t width"]) -> Float[Tensor, "b t width"]:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class ViT(nn.Module):
    """All but the last block of a vision transformer.

    Args:
        image_size: Edge length [px] of the square image, a multiple of `patch_size`.
        patch_size: Edge length [px] of a patch.
        width, depth, num_heads, mlp: Size of the public model; depth - 1 blocks are built and run.
        registers: Register tokens after a class token, with layer scale in the blocks (DINOv2); None for neither
            (SigLIP).
    """

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        width: int,
        depth: int,
        num_heads: int,
        mlp: int,
        registers: int | None,
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(patch_size, width)
        self.pos_embed = nn.Parameter(torch.empty(1, (image_size // patch_size) ** 2, width))
        self.cls_token = nn.Parameter(torch.empty(1, 1, width)) if registers is not None else None
        self.reg_token = nn.Parameter(torch.empty(1, registers, width)) if registers is not None else None
        scaled = registers is not None
        self.blocks = nn.ModuleList([ViTBlock(width, num_heads, mlp, layer_scale=scaled) for _ in range(depth - 1)])

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b patches width"]:
        """Patch features of a normalised image."""
        tokens = self.patch_embed(image) + self.pos_embed
        patches = tokens.shape[1]
        if self.cls_token is not None and self.reg_token is not None:
            first = (self.cls_token.expand(len(tokens), -1, -1), self.reg_token.expand(len(tokens), -1, -1))
            tokens = torch.cat([*first, tokens], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens[:, -patches:]

    def initialize(self) -> None:
        """Initialises the parameters that torch leaves unset, from torch's global generator."""
        for token in (self.pos_embed, self.cls_token, self.reg_token):
            if token is not None:
                nn.init.normal_(token, std=0.02)
