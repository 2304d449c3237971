"""What `daptq inspect` says of a policy folder, from its manifest and shards, without building the policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic.json_schema import SkipJsonSchema
from typing_extensions import Self

from daptq.artifacts import Artifact, read_artifact
from daptq.json_model import Count, JsonDocument, JsonModel, NotNegative, absent
from daptq.packing.checkpoint import POLICY_KIND, QUANTIZED_KIND
from daptq.packing.metadata import CheckpointMetadata, LayerDecision
from daptq.packing.size import weight_bytes_on_disk
from daptq.packing.source import locate

__all__ = ["LayerDescription", "PolicyDescription"]

_INTEGER_WEIGHT = (".weight_packed", ".weight_scale", ".weight_zero_point")


class LayerDescription(JsonModel):
    """A linear layer of a quantized policy.

    Attributes:
        name: Module path.
        role: Role of its block.
        num_bits: Bits of a weight, 16 for a layer that was kept in bfloat16.
        group_size: Inputs that share a scale, 0 for one scale per output channel.
        activation_bits: Bits of an activation, 16 for floating point.
        rotation_block: Channels of a block of the rotation of its input, 0 for none.
        parameters: Number of weights.
        bytes: Bytes of the weights in the shards, scales and zero points included.
        score: Its sensitivity, where the bit plan says one.
        reason: Why it has these bits, where the bit plan says so.
        folding: The kind of fold that changed it, where one did.
    """

    name: str
    role: str
    num_bits: Count
    group_size: Count | SkipJsonSchema[None] = absent()
    activation_bits: Count | SkipJsonSchema[None] = absent()
    rotation_block: Count | SkipJsonSchema[None] = absent()
    parameters: Count
    bytes: Count
    score: float | None
    reason: str | None
    folding: str | None


class PolicyDescription(JsonDocument):
    """A policy folder.

    Attributes:
        schema_version: Version of this format.
        directory: The folder.
        kind: Whether the policy is quantized.
        family: Family in the catalog.
        name: Name of the policy.
        weight_bytes: Bytes of all shards.
        mean_bits: Bits of a linear layer's weight, scales included; null for a float policy.
        layers: The linear layers of a quantized policy, in execution order.
        plan: The bit plan as it was written.
        folding: What was folded at the interfaces as it was written.
        recipe: The resolved recipe as it was written.
        provenance: Versions, machine, data and seed as they were written.
    """

    DOCUMENT: ClassVar[str] = "inspection"
    SCHEMA_VERSION: ClassVar[int] = 1
    KEYS: ClassVar[tuple[str, ...]] = ("directory", "kind", "layers")

    schema_version: Literal[1] = 1
    directory: str
    kind: str
    family: str
    name: str
    weight_bytes: Count
    mean_bits: NotNegative | None
    layers: tuple[LayerDescription, ...]
    plan: Any
    folding: Any
    recipe: Any
    provenance: Any

    @classmethod
    def of(cls, source: str | Path) -> Self:
        """Describes a policy folder; every byte of it is verified on the way.

        Args:
            source: A folder, or the name of a packaged policy.

        Raises:
            ArtifactError: The folder is no policy, or is damaged.
        """
        artifact = read_artifact(locate(source), kind=(POLICY_KIND, QUANTIZED_KIND))
        metadata = CheckpointMetadata.of(artifact)
        layers = tuple(_layer(artifact, metadata, name) for name in metadata.layers)
        parameters = sum(layer.parameters for layer in layers)
        return cls(
            directory=str(artifact.directory),
            kind=artifact.kind,
            family=metadata.family,
            name=metadata.name,
            weight_bytes=weight_bytes_on_disk(artifact.directory),
            mean_bits=8 * sum(layer.bytes for layer in layers) / parameters if parameters else None,
            layers=layers,
            plan=metadata.plan,
            folding=metadata.folding,
            recipe=metadata.recipe,
            provenance=metadata.provenance,
        )


def _layer(artifact: Artifact, metadata: CheckpointMetadata, name: str) -> LayerDescription:
    names = frozenset(artifact.tensor_names)
    keys = [name + key for key in _INTEGER_WEIGHT if name + key in names] or [f"{name}.weight"]
    if f"{name}.weight_shape" in names:
        rows, columns = artifact.tensor(f"{name}.weight_shape").tolist()
        parameters = rows * columns
    else:
        parameters = artifact.tensor(f"{name}.weight").numel()
    decided = (metadata.decisions or {}).get(name, LayerDecision())
    return LayerDescription(
        name=name,
        **metadata.layers[name].to_json(),
        parameters=parameters,
        bytes=sum(artifact.tensor(key).nbytes for key in keys),
        score=decided.score,
        reason=decided.reason,
        folding=metadata.folded.get(name),
    )
