"""What the manifest of a policy folder says: family, layers, how their bits were chosen, where the policy comes from.

This is the one place that reads it, and that knows what folders of earlier versions leave out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from daptq.artifacts import MANIFEST, Artifact
from daptq.errors import ForeignArtifactError
from daptq.json_model import read_json
from daptq.numerics.grid import BFLOAT16

__all__ = ["CheckpointMetadata", "LayerDecision", "StoredLayer"]

_ACTIVATION_BITS = 8


@dataclass(frozen=True, kw_only=True)
class StoredLayer:
    """How a linear layer of a quantized policy is stored.

    Attributes:
        role: Role of its block.
        num_bits: Bits of a weight, 16 for a layer that was kept in bfloat16.
        activation_bits: Bits of an activation, 16 for floating point; None for a layer that was kept.
        group_size: Inputs that share a scale, 0 for one scale per output channel.
        rotation_block: Channels of a block of the rotation of its input, 0 for none.
    """

    role: str
    num_bits: int
    activation_bits: int | None
    group_size: int = 0
    rotation_block: int = 0

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> StoredLayer:
        """Reads an entry; folders of earlier versions leave out what every layer had in common."""
        role, num_bits = str(entry["role"]), int(entry["num_bits"])
        if num_bits == BFLOAT16:
            return cls(role=role, num_bits=num_bits, activation_bits=None)
        return cls(
            role=role,
            num_bits=num_bits,
            activation_bits=int(entry.get("activation_bits", _ACTIVATION_BITS)),
            group_size=int(entry.get("group_size", 0)),
            rotation_block=int(entry.get("rotation_block", 0)),
        )

    def to_json(self) -> dict[str, Any]:
        """Inverse of `from_json`."""
        entry: dict[str, Any] = {"role": self.role, "num_bits": self.num_bits}
        if self.activation_bits is None:
            return entry
        return {
            **entry,
            "group_size": self.group_size,
            "activation_bits": self.activation_bits,
            "rotation_block": self.rotation_block,
        }


@dataclass(frozen=True, kw_only=True)
class LayerDecision:
    """What the bit plan says of a layer; None for what it does not say.

    Attributes:
        num_bits: Bits of a weight.
        reason: Why, in a word.
        score: The layer's sensitivity.
    """

    num_bits: int | None = None
    reason: str | None = None
    score: float | None = None


@dataclass(frozen=True, kw_only=True)
class CheckpointMetadata:
    """The metadata of a policy folder. What only a quantized policy has is empty or None for a float one.

    Attributes:
        family: Family in the catalog.
        name: Name of the policy.
        config: What the family builds the policy from.
        layers: The linear layers by module path, in execution order.
        plan: The bit plan as it was written.
        folding: The folds as they were written.
        recipe: The resolved recipe as it was written.
        provenance: Versions, machine, data and seed as they were written.
    """

    family: str
    name: str
    config: Mapping[str, Any]
    layers: Mapping[str, StoredLayer]
    plan: Any
    folding: Any
    recipe: Any
    provenance: Any

    @classmethod
    def of(cls, artifact: Artifact) -> CheckpointMetadata:
        """That of a folder that was read, of a policy or a quantized policy."""
        return cls.from_json(artifact.metadata)

    @classmethod
    def read(cls, directory: Path) -> CheckpointMetadata:
        """That of a policy folder, without looking at its tensors.

        Raises:
            ForeignArtifactError: The folder has no manifest, or none of a policy.
            CorruptArtifactError: The manifest is not valid JSON.
        """
        return cls.from_json(read_json(directory / MANIFEST).get("metadata"))

    @classmethod
    def from_json(cls, metadata: Any) -> CheckpointMetadata:
        """Reads the metadata of a manifest.

        Raises:
            ForeignArtifactError: It does not say what the metadata of a policy say.
        """
        try:
            family, name, config = (metadata[key] for key in ("family", "name", "config"))
            layers = {name: StoredLayer.from_json(entry) for name, entry in metadata.get("layers", {}).items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ForeignArtifactError(
                f"manifest of a policy must name family, name, config and the role and bits of each layer, got one "
                f"without: {error!r}. Write the policy again with this version of daptq."
            ) from error
        return cls(
            family=family,
            name=name,
            config=config,
            layers=layers,
            plan=metadata.get("plan"),
            folding=metadata.get("folding"),
            recipe=metadata.get("recipe"),
            provenance=metadata.get("provenance"),
        )

    @cached_property
    def decisions(self) -> Mapping[str, LayerDecision] | None:
        """What the bit plan says, by layer; None without a plan, or for one that was written in another form."""
        listed = self.plan.get("layers") if isinstance(self.plan, Mapping) else None
        if not isinstance(listed, list):
            return None
        return {
            entry["name"]: LayerDecision(
                num_bits=entry.get("num_bits"), reason=entry.get("reason"), score=entry.get("score")
            )
            for entry in listed
            if isinstance(entry, Mapping) and entry.get("name") is not None
        }

    @cached_property
    def folded(self) -> Mapping[str, str]:
        """The kind of fold that changed a layer, by layer; earlier versions name one layer in a fold, not several."""
        listed = self.folding if isinstance(self.folding, list) else []
        folds = [fold for fold in listed if isinstance(fold, Mapping) and fold.get("kind") is not None]
        return {
            layer: fold["kind"]
            for fold in folds
            for layer in fold.get("layers", [fold.get("layer")])
            if layer is not None
        }

    @property
    def sensitivity(self) -> str | None:
        """The method of the scores in the bit plan; None where nothing was scored."""
        scored = any(decision.score is not None for decision in (self.decisions or {}).values())
        return str(self.recipe["sensitivity"]["method"]) if scored else None
