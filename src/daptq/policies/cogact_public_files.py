"""Folders of public CogACT checkpoints.

    config.json               which vision-language model lies under it
    dataset_statistics.json   per data set the quantiles q01, q99 and the mask of its actions
    checkpoints/*.pt          one file of weights
    tokenizer.json            the language model's tokenizer: not part of the public folders, put it there yourself

Weights are read one tensor at a time; the file is opened by torch's weights-only loader, and no code in it runs. What
the tensors mean stands in `daptq.policies._cogact_public_names`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daptq.artifacts import read_json
from daptq.errors import ForeignArtifactError, InvalidInputError, UnknownNameError
from daptq.policies._cogact_public_names import PARTS, family_names, sizes
from daptq.tensor_files import StoredTensor, read_torch_directory

__all__ = ["FAMILY", "PublicCheckpoint", "is_public", "read_public"]

FAMILY = "cogact-public"
CONFIG, STATISTICS, CHECKPOINTS, TOKENIZER = "config.json", "dataset_statistics.json", "checkpoints", "tokenizer.json"


@dataclass(frozen=True, kw_only=True)
class PublicCheckpoint:
    """What a folder holds, in the terms of the family.

    Attributes:
        name: Name of the policy: that of the file of weights.
        config: Configuration of the family, a JSON object.
        files: Extra files of the family.
        tensors: Where each tensor lies, by its name in the family.
    """

    name: str
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
    if not (directory / TOKENIZER).is_file():
        raise InvalidInputError(
            f"{directory} must hold {TOKENIZER}, got none. Put the tokenizer of the language model (Llama-2) there."
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
    config = {"name": weights[0].stem, **_action_range(directory / STATISTICS, dataset), **sizes(shapes)}
    return PublicCheckpoint(
        name=weights[0].stem,
        config=config,
        files={TOKENIZER: (directory / TOKENIZER).read_bytes()},
        tensors={ours: stored[public] for public, ours in family_names(shapes).items()},
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
