"""Describes a policy folder from its manifest and shards, without building the policy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from daptq.artifacts import read_artifact
from daptq.packing.checkpoint import POLICY_KIND, QUANTIZED_KIND
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
    metadata = artifact.metadata
    names = frozenset(artifact.tensor_names)
    plan = metadata.get("plan")
    decisions = _by_layer(plan.get("layers") if isinstance(plan, Mapping) else None, "name")
    foldings = _kinds(metadata.get("folding"))
    layers = []
    for layer, entry in metadata.get("layers", {}).items():
        keys = [layer + key for key in _INTEGER_WEIGHT if layer + key in names] or [f"{layer}.weight"]
        if f"{layer}.weight_shape" in names:
            rows, columns = artifact.tensor(f"{layer}.weight_shape").tolist()
            parameters = rows * columns
        else:
            parameters = artifact.tensor(f"{layer}.weight").numel()
        size = sum(artifact.tensor(key).nbytes for key in keys)
        decided = {key: decisions.get(layer, {}).get(key) for key in ("score", "reason")}
        folding = foldings.get(layer)
        layers.append({"name": layer, **entry, "parameters": parameters, "bytes": size, **decided, "folding": folding})
    parameters = sum(layer["parameters"] for layer in layers)
    return {
        "schema_version": 1,
        "directory": str(artifact.directory),
        "kind": artifact.kind,
        "family": metadata["family"],
        "name": metadata["name"],
        "weight_bytes": weight_bytes_on_disk(artifact.directory),
        "mean_bits": 8 * sum(layer["bytes"] for layer in layers) / parameters if parameters else None,
        "layers": layers,
        **{key: metadata.get(key) for key in ("plan", "folding", "recipe", "provenance")},
    }


def _by_layer(entries: Any, key: str) -> dict[str, Mapping[str, Any]]:
    """Entries of a plan by the layer that they name under `key`; none where a plan was written in another form."""
    listed = entries if isinstance(entries, list) else []
    return {entry[key]: entry for entry in listed if isinstance(entry, Mapping) and entry.get(key) is not None}


def _kinds(foldings: Any) -> dict[str, Any]:
    """What kind of fold changed each layer; none where foldings were written in another form."""
    listed = [entry for entry in foldings if isinstance(entry, Mapping)] if isinstance(foldings, list) else []
    return {layer: entry.get("kind") for entry in listed for layer in entry.get("layers", ())}
