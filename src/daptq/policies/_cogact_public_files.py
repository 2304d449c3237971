"""Folders of public CogACT checkpoints, and what their tensors mean to the family ``cogact-public``.

    config.json               which vision-language model lies under it
    dataset_statistics.json   per data set the quantiles q01, q99 and the mask of its actions
    checkpoints/*.pt          one file of weights
    tokenizer.json            the language model's tokenizer: not part of the public folders, put it there yourself

Weights are read one tensor at a time; the file is opened by torch's weights-only loader, and no code in it runs. It
holds ``{"model": {vision_backbone, projector, llm_backbone, action_model}}`` with timm's names in the towers and those
of Hugging Face in the language model. It says nothing of sizes, which follow from the shapes, except heads: those of
DINOv2 have 64 channels, of SigLIP 72, of Llama 128, and of a DiT what the public sizes S, B and L have.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daptq.errors import ForeignArtifactError, InvalidInputError, UnknownNameError
from daptq.json_model import read_json
from daptq.policies.cogact_family import TOKENIZER_FILE
from daptq.tensor_files import StoredTensor, read_torch_directory

__all__ = ["FOREIGN_FILES", "PublicCheckpoint", "is_public", "read_public"]

CONFIG, STATISTICS, CHECKPOINTS = "config.json", "dataset_statistics.json", "checkpoints"
FOREIGN_FILES = ("*.json", f"{CHECKPOINTS}/*.pt")

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


@dataclass(frozen=True, kw_only=True)
class PublicCheckpoint:
    """What a folder holds, in the terms of the family.

    Attributes:
        config: Configuration of the family, a JSON object.
        files: Extra files of the family.
        tensors: Where each tensor lies, by its name in the family.
    """

    config: dict[str, Any]
    files: dict[str, bytes]
    tensors: Mapping[str, StoredTensor]


def is_public(directory: Path) -> bool:
    """Whether a folder is laid out as a public checkpoint."""
    return (directory / CONFIG).is_file() and (directory / STATISTICS).is_file()


def read_public(directory: Path, *, dataset: str | None) -> PublicCheckpoint:
    """Reads everything but the weights.

    Args:
        directory: The folder.
        dataset: Data set whose statistics un-normalise the actions; None where there is one alone.

    Raises:
        ForeignArtifactError: A file is missing, or holds something else.
        InvalidInputError: There are several data sets and none was chosen, or a tokenizer is missing.
        UnknownNameError: There are no statistics of `dataset`.
        CorruptArtifactError: The file of weights is shorter than it says.
    """
    weights = sorted((directory / CHECKPOINTS).glob("*.pt"))
    if len(weights) != 1:
        raise ForeignArtifactError(
            f"{directory / CHECKPOINTS} must hold one .pt file, got {[path.name for path in weights]}. "
            "Leave the one to load."
        )
    if not (directory / TOKENIZER_FILE).is_file():
        raise InvalidInputError(
            f"{directory} must hold {TOKENIZER_FILE}, got none. "
            "Put the tokenizer of the language model (Llama-2) there."
        )
    stored = {
        name.removeprefix("model."): tensor
        for name, tensor in read_torch_directory(weights[0]).items()
        if name.startswith("model.")
    }
    if missing := [part for part in PARTS if not any(name.startswith(f"{part}.") for name in stored)]:
        raise ForeignArtifactError(
            f"{weights[0]} must hold the parts {', '.join(PARTS)} under 'model', got none of {missing}. "
            "Choose a CogACT checkpoint."
        )
    shapes = {name: tensor.shape for name, tensor in stored.items()}
    config = {"name": weights[0].stem, **_action_range(directory / STATISTICS, dataset), **_sizes(shapes)}
    return PublicCheckpoint(
        config=config,
        files={TOKENIZER_FILE: (directory / TOKENIZER_FILE).read_bytes()},
        tensors={ours: stored[public] for public, ours in _family_names(shapes).items()},
    )


def _action_range(path: Path, dataset: str | None) -> dict[str, list[Any]]:
    """Quantiles and mask of the actions of a data set."""
    statistics = read_json(path)
    if dataset is None and len(statistics) != 1:
        raise InvalidInputError(
            f"dataset must be one of {', '.join(sorted(statistics))}, got none. "
            "Actions are un-normalised by the statistics of the data set that the robot belongs to."
        )
    name = next(iter(statistics)) if dataset is None else dataset
    if name not in statistics:
        raise UnknownNameError("dataset", name, statistics)
    try:
        action = statistics[name]["action"]
        low, high = [float(q) for q in action["q01"]], [float(q) for q in action["q99"]]
        mask = [bool(value) for value in action.get("mask", [True] * len(low))]
    except (KeyError, TypeError, ValueError) as error:
        raise ForeignArtifactError(
            f"{path} must hold q01, q99 and mask of the actions of {name}, got {error!r}. Check the file."
        ) from error
    return {"action_low": low, "action_high": high, "action_mask": mask}


def _family_names(public: Shapes) -> dict[str, str]:
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


def _sizes(public: Shapes) -> dict[str, Any]:
    """Settings of `PublicCogACTConfig` that follow from the shapes.

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
            f"{action_width}. Its number of heads is unknown: pass files of a public size."
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
