"""Describes a policy folder from its manifest and shards, without building the policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from daptq.artifacts import read_artifact
from daptq.packing.checkpoint import POLICY_KIND, QUANTIZED_KIND
from daptq.packing.metadata import CheckpointMetadata, LayerDecision
from daptq.packing.size import weight_bytes_on_disk
from daptq.packing.source import locate

__all__ = ["describe"]

_INTEGER_WEIGHT = (".weight_packed", ".weight_scale", ".weight_zero_point")


def describe(source: str | Path) -> dict[str, Any]:
    """Describes a policy folder without building the policy.

    Args:
        source: A folder, or the name of a packaged policy.

    Returns:
        JSON object: `schema_version`, `directory`, `kind`, `family`, `name`, `weight_bytes` (all shards), `mean_bits`
        (of a linear layer's weight, scales included; None for a float policy), `layers` (`name`, `role`, `num_bits`,
        `parameters`, `bytes`, and from the plans `score`, `reason` and `folding`, each None where they say nothing, of
        each linear layer of a quantized policy, in execution order), and, as they were written, `plan`, `folding`,
        `recipe` and `provenance`.

    Raises:
        ArtifactError: The folder is no policy, or is damaged.
    """
    artifact = read_artifact(locate(source), kind=(POLICY_KIND, QUANTIZED_KIND))
    metadata = CheckpointMetadata.of(artifact)
    names = frozenset(artifact.tensor_names)
    decisions = metadata.decisions or {}
    layers = []
    for layer, stored in metadata.layers.items():
        keys = [layer + key for key in _INTEGER_WEIGHT if layer + key in names] or [f"{layer}.weight"]
        if f"{layer}.weight_shape" in names:
            rows, columns = artifact.tensor(f"{layer}.weight_shape").tolist()
            parameters = rows * columns
        else:
            parameters = artifact.tensor(f"{layer}.weight").numel()
        size = sum(artifact.tensor(key).nbytes for key in keys)
        decided = decisions.get(layer, LayerDecision())
        layers.append(
            {
                "name": layer,
                **stored.to_json(),
                "parameters": parameters,
                "bytes": size,
                "score": decided.score,
                "reason": decided.reason,
                "folding": metadata.folded.get(layer),
            }
        )
    parameters = sum(layer["parameters"] for layer in layers)
    return {
        "schema_version": 1,
        "directory": str(artifact.directory),
        "kind": artifact.kind,
        "family": metadata.family,
        "name": metadata.name,
        "weight_bytes": weight_bytes_on_disk(artifact.directory),
        "mean_bits": 8 * sum(layer["bytes"] for layer in layers) / parameters if parameters else None,
        "layers": layers,
        "plan": metadata.plan,
        "folding": metadata.folding,
        "recipe": metadata.recipe,
        "provenance": metadata.provenance,
    }
