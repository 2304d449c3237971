"""Names and sizes in public CogACT checkpoints, and their translation into those of the family ``cogact-public``.

A public checkpoint is ``{"model": {vision_backbone, projector, llm_backbone, action_model}}`` with timm's names in the
towers and Hugging Face's in the language model; it says nothing of sizes, which follow from the shapes, except heads:
those of DINOv2 have 64 channels, of SigLIP 72, of Llama 128, and of a DiT what the public sizes S, B and L have. This
module reads no file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from daptq.errors import ForeignArtifactError

__all__ = ["PARTS", "family_names", "sizes"]

PARTS = ("vision_backbone", "projector", "llm_backbone", "action_model")

# Public models carry weights that predicting an action never uses: the last block, final norm and pooling head of each
# tower (features are taken before them), the language model's output layer and rotary frequencies.
_UNUSED = re.compile(
    r"vision_backbone\.(dino|siglip)_featurizer\.(norm|fc_norm|head|attn_pool)\."
    r"|llm_backbone\.llm\.lm_head\.|.*\.rotary_emb\.inv_freq$"
)
_BLOCK = re.compile(r"vision_backbone\.(dino|siglip)_featurizer\.blocks\.(\d+)\.")
_CHANNELS = {"dino": 64, "siglip": 72}
_LANGUAGE_CHANNELS = 128
_ACTION_HEADS = {384: 4, 768: 12, 1024: 16}

Shapes = Mapping[str, tuple[int, ...]]


def family_names(public: Shapes) -> dict[str, str]:
    """Name in the family of every public tensor that the family uses, by public name.

    Args:
        public: Shape of every tensor below ``model``, by its name.
    """
    last = {tower: _count(public, f"vision_backbone.{tower}_featurizer.blocks") - 1 for tower in _CHANNELS}
    names: dict[str, str] = {}
    for name in public:
        block = _BLOCK.match(name)
        unused = _UNUSED.match(name) or (block is not None and int(block[2]) == last[block[1]])
        if not unused and name.startswith(tuple(f"{part}." for part in PARTS)):
            names[name] = name.replace("llm_backbone.llm.model.", "llm_backbone.")
    return names


def sizes(public: Shapes) -> dict[str, Any]:
    """Settings of `PrismaticConfig` that follow from the shapes.

    Raises:
        ForeignArtifactError: A tensor that says how large a part is, is missing or has another number of axes.
    """
    dino, siglip = (f"vision_backbone.{tower}_featurizer" for tower in ("dino", "siglip"))
    width, _, patch_size, _ = _shape(public, f"{dino}.patch_embed.proj.weight", 4)
    _, patches, _ = _shape(public, f"{dino}.pos_embed", 3)
    _, registers, _ = _shape(public, f"{dino}.reg_token", 3)
    siglip_width = _shape(public, f"{siglip}.patch_embed.proj.weight", 4)[0]
    vocab_size, language_width = _shape(public, "llm_backbone.llm.model.embed_tokens.weight", 2)
    layers = "llm_backbone.llm.model.layers"
    chunk, action_width = _shape(public, "action_model.net.positional_embedding", 2)
    if action_width not in _ACTION_HEADS:
        raise ForeignArtifactError(
            f"width of the action model must be that of DiT-S, B or L ({', '.join(map(str, _ACTION_HEADS))}), got "
            f"{action_width}. Its number of heads cannot be told."
        )
    return {
        "cameras": {"primary": patch_size * round(patches**0.5)},
        "patch_size": patch_size,
        "registers": registers,
        "dino": _tower(public, dino, width, _CHANNELS["dino"]),
        "siglip": _tower(public, siglip, siglip_width, _CHANNELS["siglip"]),
        "language_width": language_width,
        "language_depth": _count(public, layers),
        "language_heads": language_width // _LANGUAGE_CHANNELS,
        "language_mlp": _shape(public, f"{layers}.0.mlp.gate_proj.weight", 2)[0],
        "vocab_size": vocab_size,
        "action_width": action_width,
        "action_depth": _count(public, "action_model.net.blocks"),
        "action_heads": _ACTION_HEADS[action_width],
        "action_dim": _shape(public, "action_model.net.x_embedder.linear.weight", 2)[1],
        "chunk_size": chunk - 1,
    }


def _tower(public: Shapes, name: str, width: int, channels: int) -> dict[str, int]:
    return {
        "width": width,
        "depth": _count(public, f"{name}.blocks"),
        "heads": max(width // channels, 1),
        "mlp": _shape(public, f"{name}.blocks.0.mlp.fc1.weight", 2)[0],
    }


def _count(public: Shapes, stack: str) -> int:
    """Number of blocks of a stack."""
    start = len(stack) + 1
    return 1 + max((int(name[start:].split(".")[0]) for name in public if name.startswith(f"{stack}.")), default=-1)


def _shape(public: Shapes, name: str, axes: int) -> tuple[int, ...]:
    if name not in public or len(public[name]) != axes:
        got = f"shape {public[name]}" if name in public else "none of that name"
        raise ForeignArtifactError(
            f"a public CogACT checkpoint must hold {name} with {axes} axes, got {got}. Check the file."
        )
    return public[name]
