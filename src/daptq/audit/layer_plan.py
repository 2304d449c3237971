"""What a quantized checkpoint says of each of its linear layers: the plan that an audit compares with.

Everything is read from the folder and nothing from the loaded policy, so that a policy that was changed after it was
loaded is not compared with itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from daptq.artifacts import Artifact, read_artifact
from daptq.kernels.linear.arithmetic import FLOAT_ACTIVATIONS, rounding_bound
from daptq.kernels.linear.backends.reference import linear_w4a8
from daptq.kernels.linear.contract import PackedWeight
from daptq.kernels.linear.transform import transform
from daptq.numerics.grid import BFLOAT16
from daptq.numerics.rotation import hadamard
from daptq.packing.checkpoint import QUANTIZED_KIND
from daptq.packing.metadata import CheckpointMetadata, LayerDecision, StoredLayer
from daptq.packing.source import locate

__all__ = ["LayerPlan", "read_plan"]


@dataclass(frozen=True, kw_only=True)
class LayerPlan:
    """What the bit plan and the checkpoint that follows it say of one linear layer.

    Attributes:
        name: Module path.
        role: Role of its block.
        num_bits: Bits of a weight, 16 for a layer that was kept.
        activation_bits: Bits of an activation, 16 for floating point; None for a layer that was kept.
        group_size: Inputs that share a scale, 0 for one scale per output channel.
        decided_bits: Bits of a weight that the bit plan says; None where it says nothing.
        tensors: The tensors that the checkpoint holds for it, by their last name.
        rotation_block: Channels of a block of the rotation of its input, 0 for none.
    """

    name: str
    role: str
    num_bits: int
    activation_bits: int | None
    group_size: int
    decided_bits: int | None
    tensors: Mapping[str, Tensor]
    rotation_block: int

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features)."""
        if self.num_bits == BFLOAT16:
            rows, columns = self.tensors["weight"].shape
        else:
            rows, columns = self.tensors["weight_shape"].tolist()
        return int(rows), int(columns)

    def transformed(self, x: Float[Tensor, "m in"]) -> Float[Tensor, "m in"]:
        """The input as it is multiplied, before it is quantized; all rows at once, as the layer does it."""
        rotation = hadamard(self.rotation_block) if self.rotation_block else None
        scale = self.tensors.get("input_scale")
        return x if rotation is None and scale is None else transform(x, scale, rotation)

    @property
    def integer_activations(self) -> bool:
        """Whether the multiplication sees quantized activations."""
        return self.activation_bits not in (None, FLOAT_ACTIVATIONS)

    def weight(self) -> Float[Tensor, "out in"]:
        """The weight that multiplies transformed rows, float64."""
        if self.num_bits == BFLOAT16:
            return self.tensors["weight"].double()
        return self.packed().matrix(self.tensors["weight_scale"]).dequantize(torch.float64)

    def packed(self) -> PackedWeight:
        """The packed weight of a quantized layer."""
        return PackedWeight(
            packed=self.tensors["weight_packed"],
            in_features=self.shape[1],
            num_bits=self.num_bits,
            group_size=self.group_size,
            zero_point=self.tensors.get("weight_zero_point"),
        )

    def result(self, x: Float[Tensor, "m in"], step: int) -> Float[Tensor, "m out"]:
        """The reference's result for transformed rows; with floating-point activations, in float64.

        Args:
            x: float32 (m, in), transformed.
            step: Denoising step, for a layer with one activation scale for each.
        """
        bias = self.tensors.get("bias")
        if not self.integer_activations:
            return nn.functional.linear(x.double(), self.weight(), None if bias is None else bias.double())
        assert self.activation_bits is not None
        table = self.tensors.get("activation_scale")
        scale = None if table is None else table[step if len(table) > 1 else 0]
        weight = self.packed()
        return linear_w4a8(
            x,
            weight.packed,
            self.tensors["weight_scale"],
            bias,
            weight.in_features,
            weight.num_bits,
            self.activation_bits,
            scale,
            weight.group_size,
            weight.zero_point,
        )

    def rounding(self, x: Float[Tensor, "m in"]) -> Float[Tensor, "m out"]:
        """How far a product in the arithmetic of `x` may be from `result`, with floating-point activations."""
        return rounding_bound(x, self.weight(), self.tensors.get("bias"))


def read_plan(checkpoint: str | Path) -> dict[str, LayerPlan]:
    """The linear layers of a quantized checkpoint by module path, in execution order.

    Args:
        checkpoint: Folder that `daptq quantize` wrote.

    Raises:
        UnknownNameError: `checkpoint` is a plain word that is no folder.
        ArtifactError: The folder is no quantized policy, or is damaged.
    """
    artifact = read_artifact(locate(checkpoint), kind=QUANTIZED_KIND)
    metadata = CheckpointMetadata.of(artifact)
    decisions = metadata.decisions or {}
    return {
        name: _layer(artifact, name, stored, decisions.get(name, LayerDecision()).num_bits)
        for name, stored in metadata.layers.items()
    }


def _layer(artifact: Artifact, name: str, stored: StoredLayer, decided: int | None) -> LayerPlan:
    prefix = f"{name}."
    tensors = {
        key.removeprefix(prefix): artifact.tensor(key) for key in artifact.tensor_names if key.startswith(prefix)
    }
    return LayerPlan(
        name=name,
        role=stored.role,
        num_bits=stored.num_bits,
        activation_bits=stored.activation_bits,
        group_size=stored.group_size,
        decided_bits=decided,
        tensors=tensors,
        rotation_block=stored.rotation_block,
    )
