"""The rounding stage: every layer rounded by the recipe's method to each number of bits that it may get.

A layer's input may be smoothed and rotated and its activations scaled statically: `Rounder` prepares a weight for that,
and builds the quantized layer that does the same to its input. A layer that the policy calls idle was not calibrated:
it is rounded to nearest, without smoothing and with dynamic scales.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from jaxtyping import Float
from torch import Tensor

from daptq.allocation.plan import BitPlan
from daptq.artifacts import Artifact
from daptq.kernels.linear.arithmetic import FLOAT_ACTIVATIONS, quantize_activations
from daptq.kernels.linear.transform import transform
from daptq.layers.quantized_linear import QuantizedLinear
from daptq.numerics.quantized_matrix import QuantizedMatrix
from daptq.numerics.rotation import fits, hadamard, rotate
from daptq.policies.contract import Policy
from daptq.quantization.allocation import float_linear
from daptq.quantization.recipe import Recipe
from daptq.rounding import gptq, nearest
from daptq.rounding.activations import static_scale
from daptq.rounding.gptq import GptqConfig
from daptq.rounding.nearest import NearestConfig
from daptq.rounding.smoothing import smoothing_scale
from daptq.rounding.transform import transform_gram

__all__ = ["ROUNDED_KIND", "RoundedLayers", "Rounder"]

ROUNDED_KIND = "rounded-layers"


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

    @property
    def config(self) -> NearestConfig | GptqConfig:
        """How weights are rounded."""
        return self._recipe.rounding

    def transformed(self, name: str, weight: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        """A weight for the transformed input of layer `name`, float32: W diag(1 / input_scale) R."""
        input_scale, block = self._transform(name)
        result = weight.detach().double()
        result = result if input_scale is None else result / input_scale
        return (rotate(result, block) if block else result).float()

    def restored(self, name: str, weight: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        """The inverse of `transformed`."""
        input_scale, block = self._transform(name)
        result = rotate(weight.double(), block) if block else weight.double()
        return (result if input_scale is None else result * input_scale).float()

    def round(self, name: str, transformed: Float[Tensor, "out in"], num_bits: int) -> QuantizedMatrix:
        """A transformed weight of layer `name`, rounded."""
        config = self.config
        if isinstance(config, NearestConfig) or name in self._idle:
            return nearest.round_weight(
                transformed,
                num_bits,
                scale=config.scale,
                group_size=config.group_size,
                asymmetric=config.asymmetric,
            )
        assert self._statistics is not None
        return gptq.round_weight(
            transformed,
            num_bits,
            transform_gram(self._statistics.tensor(f"{name}/gram"), *self._transform(name)),
            scale=config.scale,
            group_size=config.group_size,
            asymmetric=config.asymmetric,
            act_order=config.act_order,
            damping=config.damping,
        )

    def layer(self, name: str, weight: QuantizedMatrix, bias: Float[Tensor, " out"] | None) -> QuantizedLinear:
        """The layer of a rounded weight."""
        input_scale, block = self._transform(name)
        return QuantizedLinear.from_integers(
            weight.integers,
            weight.scale,
            bias,
            num_bits=weight.num_bits,
            group_size=weight.group_size,
            zero_point=weight.zero_point,
            activation_bits=self._activation_bits(name),
            activation_scale=self._activation_scale(name),
            input_scale=input_scale,
            rotation_block=block,
        )

    def quantized_input(self, name: str, x: Float[Tensor, "n in"]) -> Float[Tensor, "n in"]:
        """The input of layer `name` as its quantized layer reads it, with the transform undone."""
        input_scale, block = self._transform(name)
        rotation = hadamard(block) if block else None
        bits, table = self._activation_bits(name), self._activation_scale(name)
        if bits == FLOAT_ACTIVATIONS:
            return x
        index = self._policy.denoising_step.index if table is not None and len(table) > 1 else 0
        integers, scale = quantize_activations(
            transform(x.float(), input_scale, rotation), bits, None if table is None else table[index]
        )
        read = transform(integers * scale, None, rotation)
        return read if input_scale is None else read / input_scale

    def layers(
        self, options: Mapping[str, tuple[int, ...]], *, progress: Callable[[int], None]
    ) -> Iterator[tuple[str, Tensor]]:
        """Rounds every layer to each of its bits.

        Yields int8 ``<layer>/<bits>/integers``, float32 ``<layer>/<bits>/scale``, and where the recipe asks for them
        int8 ``<layer>/<bits>/zero_point``.

        Args:
            options: Bits of each layer.
            progress: Called with the number of finished layers after every layer.
        """
        for done, (name, bits) in enumerate(options.items(), start=1):
            weight = self.transformed(name, self._tensors[f"{name}.weight"])
            for num_bits in bits:
                rounded = self.round(name, weight, num_bits)
                yield f"{name}/{num_bits}/integers", rounded.integers
                yield f"{name}/{num_bits}/scale", rounded.scale
                if rounded.zero_point is not None:
                    yield f"{name}/{num_bits}/zero_point", rounded.zero_point
            progress(done)

    def _activation_bits(self, name: str) -> int:
        return self._recipe.activation_bits.of(self._roles[name])

    def _activation_scale(self, name: str) -> Float[Tensor, " steps"] | None:
        """The static scales of a layer; None for dynamic ones, and where activations are not quantized."""
        dynamic = self._recipe.activations.scaling == "dynamic" or name in self._idle
        if dynamic or self._activation_bits(name) == FLOAT_ACTIVATIONS:
            return None
        assert self._ranges is not None
        return static_scale(self._ranges.tensor(f"{name}/range"), self._activation_bits(name))

    def _transform(self, name: str) -> tuple[Float[Tensor, " in"] | None, int]:
        """`input_scale` and `rotation_block` of a layer."""
        config, input_scale = self._recipe.transform, None
        if config.smoothing and name not in self._idle:
            assert self._ranges is not None
            absmax = self._ranges.tensor(f"{name}/absmax")
            input_scale = smoothing_scale(self._tensors[f"{name}.weight"], absmax, config.smoothing).reciprocal()
        block = config.rotation_block
        return input_scale, block if block and fits(float_linear(self._policy, name).in_features, block) else 0


class RoundedLayers:
    """Reads what `Rounder.layers` wrote, one layer at a time.

    Args:
        policy: Gives the bias of each layer.
        rounder: Builds the layers.
        artifacts: What holds each rounded layer, by layer name.
    """

    def __init__(self, policy: Policy, rounder: Rounder, artifacts: Mapping[str, Artifact]) -> None:
        self._tensors, self._rounder, self._artifacts = policy.tensors(), rounder, artifacts

    def layer(self, name: str, num_bits: int) -> QuantizedLinear:
        """The packed layer, with the bias of the full-precision layer."""
        return self._rounder.layer(name, self._rounded(name, num_bits), self._tensors.get(f"{name}.bias"))

    def planned(self, plan: BitPlan) -> Mapping[str, QuantizedLinear]:
        """The packed layers of a plan; one is built each time it is asked for, so none stays in memory."""
        return _PlannedLayers(self, plan)

    def weight(self, name: str, num_bits: int) -> Float[Tensor, "out in"]:
        """The rounded weight as floats for the untransformed input (fake quantization), float32."""
        return self._rounder.restored(name, self._rounded(name, num_bits).dequantize())

    def quantized_input(self, name: str, x: Float[Tensor, "n in"]) -> Float[Tensor, "n in"]:
        """See `Rounder.quantized_input`."""
        return self._rounder.quantized_input(name, x)

    def _rounded(self, name: str, num_bits: int) -> QuantizedMatrix:
        artifact = self._artifacts[name]
        prefix, config = f"{name}/{num_bits}", self._rounder.config
        return QuantizedMatrix(
            integers=artifact.tensor(f"{prefix}/integers"),
            scale=artifact.tensor(f"{prefix}/scale"),
            zero_point=artifact.tensor(f"{prefix}/zero_point") if config.asymmetric else None,
            num_bits=num_bits,
            group_size=config.group_size,
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
