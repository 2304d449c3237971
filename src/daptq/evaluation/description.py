"""What a policy of an evaluation is made of: its weights, its linear layers, and why they have their bits."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from daptq.json_model import Count, JsonModel, Positive

__all__ = ["BitPlan", "LayerReason", "LinearLayer", "PolicyDescription", "Weights"]


class Weights(JsonModel):
    """The weights of a policy.

    Attributes:
        bytes_on_disk: Size of the folder's shards; null for a policy that is in memory only.
        bytes_in_memory: Size of parameters and buffers after one prediction.
        sha256: Hash of the state dict.
    """

    bytes_on_disk: Count | None
    bytes_in_memory: Count
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class LinearLayer(JsonModel):
    """A linear layer.

    Attributes:
        name: Module path.
        role: Role of its block.
        num_bits: Bits of one stored weight.
        parameters: Number of weights.
        activation_bits: Bits of an activation; null for floating point.
    """

    name: str
    role: Literal["vision", "language", "connector", "action_head"]
    num_bits: Positive
    parameters: Count
    activation_bits: Positive | None = None


class LayerReason(JsonModel):
    """Why a layer has its bits.

    Attributes:
        name: Module path.
        reason: The reason in a word.
        score: The layer's sensitivity; null where it was not scored.
    """

    name: str
    reason: str | None
    score: float | None


class BitPlan(JsonModel):
    """How the bits of a quantized policy were chosen.

    Attributes:
        sensitivity: Method of the scores; null where nothing was scored.
        layers: The layers in execution order.
    """

    sensitivity: str | None
    layers: tuple[LayerReason, ...]


class PolicyDescription(JsonModel):
    """What a policy is made of.

    Attributes:
        family: Family in the catalog.
        weights: Size and hash.
        layers: Linear layers in execution order.
        plan: How the bits were chosen; null for a float policy and for one without a folder.
    """

    family: str
    weights: Weights
    layers: tuple[LinearLayer, ...]
    plan: BitPlan | None = None
