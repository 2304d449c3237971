"""The rounding stage: every layer rounded by the recipe's method to each number of bits that it may get.

A layer's input may be smoothed and rotated and its activations scaled statically: `Rounder` prepares a weight for that,
and builds the quantized layer that does the same to its input. A layer that the policy calls idle was not calibrated:
the identity stands in for its Gram matrix, and it has no smoothing and dynamic scales.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from daptq.allocation.plan import BitPlan
from daptq.artifacts import Artifact
from daptq.kernels.linear.arithmetic import FLOAT_ACTIVATIONS, quantize_activations
from daptq.layers.quantized_linear import QuantizedLinear
from daptq.numerics.quantized_matrix import QuantizedMatrix
from daptq.policies.contract import Policy
from daptq.progress import Progress
from daptq.quantization.recipe import Recipe
from daptq.quantization.stage import Stage, StageContent
from daptq.rounding.contract import RoundingMethod
from daptq.rounding.transform import LayerTransform

__all__ = ["RoundedLayers", "Rounder", "RoundingStage"]


class Rounder:
    """Rounds weights of named layers, and builds their quantized layers, as the recipe says.

    Args:
        policy: Full-precision policy.
        recipe: Rounding method, transform of the inputs, activations.
        statistics: Holds the Gram matrix ``<layer>/gram`` of every layer, where the method reads them.
        ranges: Holds ``<layer>/absmax`` and ``<layer>/range``, where transform and activations read them.
    """

    def __init__(self, policy: Policy, recipe: Recipe, statistics: Artifact | None, ranges: Artifact | None) -> None:
        self._policy, self._recipe = policy, recipe
        self._statistics, self._ranges = statistics, ranges
        self._roles, self._idle = policy.linear_layers(), frozenset(policy.idle_layers())
        self._tensors = policy.tensors()
        self._transforms: dict[str, LayerTransform] = {}

    @property
    def method(self) -> RoundingMethod:
        """How weights are rounded."""
        return self._recipe.rounding

    def weight(self, name: str) -> Float[Tensor, "out in"]:
        """The float weight of layer `name`."""
        return self._tensors[f"{name}.weight"]

    def transformed(self, name: str, weight: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        """A weight for the transformed input of layer `name`, float32."""
        return self._transform(name).weight(weight)

    def restored(self, name: str, weight: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        """The inverse of `transformed`."""
        return self._transform(name).restored_weight(weight)

    def round(self, name: str, transformed: Float[Tensor, "out in"], num_bits: int) -> QuantizedMatrix:
        """A transformed weight of layer `name`, rounded."""
        gram = None
        if self.method.needs.grams and name in self._idle:
            gram = torch.eye(transformed.shape[1], dtype=torch.float64)
        elif self.method.needs.grams:
            assert self._statistics is not None, "the recipe needs Gram matrices"
            gram = self._transform(name).gram(self._statistics.tensor(f"{name}/gram"))
        return self.method.round_weight(transformed, num_bits, gram)

    def layer(self, name: str, weight: QuantizedMatrix, bias: Float[Tensor, " out"] | None) -> QuantizedLinear:
        """The layer of a rounded weight."""
        transform = self._transform(name)
        return QuantizedLinear.from_integers(
            weight.integers,
            weight.scale,
            bias,
            num_bits=weight.num_bits,
            group_size=weight.group_size,
            zero_point=weight.zero_point,
            activation_bits=self._activation_bits(name),
            activation_scale=self._activation_scale(name),
            input_scale=transform.input_scale,
            rotation_block=transform.rotation_block,
        )

    def quantized_input(self, name: str, x: Float[Tensor, "n in"]) -> Float[Tensor, "n in"]:
        """The input of layer `name` as its quantized layer reads it, with the transform undone."""
        bits, table = self._activation_bits(name), self._activation_scale(name)
        if bits == FLOAT_ACTIVATIONS:
            return x
        transform = self._transform(name)
        index = self._policy.denoising_step.index if table is not None and len(table) > 1 else 0
        integers, scale = quantize_activations(
            transform.input(x.float()), bits, None if table is None else table[index]
        )
        return transform.restored_input(integers * scale)

    def _activation_bits(self, name: str) -> int:
        return self._recipe.activation_bits.of(self._roles[name])

    def _activation_scale(self, name: str) -> Float[Tensor, " steps"] | None:
        """The static scales of a layer; None for dynamic ones, and where activations are not quantized."""
        bits, scaling = self._activation_bits(name), self._recipe.activation_scaling
        if bits == FLOAT_ACTIVATIONS or name in self._idle:
            return None
        return scaling.scales(self._range(name, "range") if scaling.needs.ranges else None, bits)

    def _transform(self, name: str) -> LayerTransform:
        """What is done to the weight and the input of a layer, found once."""
        if name not in self._transforms:
            config = self._recipe.transform
            config = replace(config, smoothing=0.0) if name in self._idle else config
            absmax = self._range(name, "absmax") if config.needs.ranges else None
            self._transforms[name] = config.of_layer(self.weight(name), absmax)
        return self._transforms[name]

    def _range(self, name: str, kind: str) -> Tensor:
        assert self._ranges is not None, "the recipe needs ranges"
        return self._ranges.tensor(f"{name}/{kind}")


@dataclass(frozen=True, kw_only=True)
class RoundingStage(Stage[Artifact]):
    """Every layer of one block, rounded to each of its bits.

    Tensors int8 ``<layer>/<bits>/integers``, float32 ``<layer>/<bits>/scale``, and where the recipe asks for them int8
    ``<layer>/<bits>/zero_point``, computed layer by layer as they are taken.

    Attributes:
        name: Folder of the block.
        bits: Bits of each layer.
        rounder: Rounds.
        progress: Called as progress(done, total, "round") after every layer.
        before: Layers of earlier blocks.
        total: Layers of all blocks.
    """

    kind = "rounded-layers"

    name: str
    bits: Mapping[str, tuple[int, ...]]
    rounder: Rounder
    progress: Progress
    before: int
    total: int

    def compute(self) -> StageContent:
        """Rounds the layers."""
        return self._tensors(), {}

    def read(self, artifact: Artifact) -> Artifact:
        """The artifact: its tensors are read layer by layer."""
        return artifact

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for done, (name, bits) in enumerate(self.bits.items(), start=1):
            weight = self.rounder.transformed(name, self.rounder.weight(name))
            for num_bits in bits:
                rounded = self.rounder.round(name, weight, num_bits)
                yield f"{name}/{num_bits}/integers", rounded.integers
                yield f"{name}/{num_bits}/scale", rounded.scale
                if rounded.zero_point is not None:
                    yield f"{name}/{num_bits}/zero_point", rounded.zero_point
            self.progress(self.before + done, self.total, "round")


class RoundedLayers:
    """Reads what `RoundingStage` wrote, one layer at a time.

    Args:
        policy: Gives the bias of each layer.
        rounder: Builds the layers.
        artifacts: What holds each rounded layer, by layer name.

    Attributes:
        rounder: As given.
    """

    def __init__(self, policy: Policy, rounder: Rounder, artifacts: Mapping[str, Artifact]) -> None:
        self.rounder = rounder
        self._tensors, self._artifacts = policy.tensors(), artifacts

    def layer(self, name: str, num_bits: int) -> QuantizedLinear:
        """The packed layer, with the bias of the full-precision layer."""
        return self.rounder.layer(name, self._rounded(name, num_bits), self._tensors.get(f"{name}.bias"))

    def planned(self, plan: BitPlan) -> Mapping[str, QuantizedLinear]:
        """The packed layers of a plan; one is built each time it is asked for, so none stays in memory."""
        return _PlannedLayers(self, plan)

    def weight(self, name: str, num_bits: int) -> Float[Tensor, "out in"]:
        """The rounded weight as floats for the untransformed input (fake quantization), float32."""
        return self.rounder.restored(name, self._rounded(name, num_bits).dequantize())

    def quantized_input(self, name: str, x: Float[Tensor, "n in"]) -> Float[Tensor, "n in"]:
        """See `Rounder.quantized_input`."""
        return self.rounder.quantized_input(name, x)

    def _rounded(self, name: str, num_bits: int) -> QuantizedMatrix:
        artifact = self._artifacts[name]
        prefix, method = f"{name}/{num_bits}", self.rounder.method
        return QuantizedMatrix(
            integers=artifact.tensor(f"{prefix}/integers"),
            scale=artifact.tensor(f"{prefix}/scale"),
            zero_point=artifact.tensor(f"{prefix}/zero_point") if method.asymmetric else None,
            num_bits=num_bits,
            group_size=method.group_size,
        )


class _PlannedLayers(Mapping[str, QuantizedLinear]):
    """See `RoundedLayers.planned`."""

    def __init__(self, rounded: RoundedLayers, plan: BitPlan) -> None:
        self._rounded = rounded
        self._bits = {name: plan[name].num_bits for name in plan.quantized}

    def __getitem__(self, name: str) -> QuantizedLinear:
        return self._rounded.layer(name, self._bits[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._bits)

    def __len__(self) -> int:
        return len(self._bits)
