"""The rounding stage: every layer rounded by the recipe's method to each number of bits that it may get.

A layer's input may be smoothed and rotated and its activations scaled statically: `Rounder` prepares a weight for that,
and builds the quantized layer that does the same to its input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from jaxtyping import Float, Int8
from torch import Tensor

from daptq.artifacts import Artifact
from daptq.kernels.linear._arithmetic import quantize_activations
from daptq.kernels.linear._layer import QuantizedLinear
from daptq.kernels.linear._transform import transform
from daptq.numerics.grid import dequantize
from daptq.numerics.rotation import fits, hadamard, rotate
from daptq.policies._base import Policy
from daptq.recipes._allocation import float_linear
from daptq.recipes._recipe import Recipe
from daptq.rounding import gptq, nearest
from daptq.rounding._activations import static_scale
from daptq.rounding._smoothing import smoothing_scale
from daptq.rounding._transform import transform_gram
from daptq.rounding.nearest import NearestConfig

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
        self._roles = policy.linear_layers()

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

    def round(
        self, name: str, transformed: Float[Tensor, "out in"], num_bits: int
    ) -> tuple[Int8[Tensor, "out in"], Float[Tensor, "out 1"]]:
        """Integers int8 (out, in) and scale float32 (out, 1) of a transformed weight of layer `name`."""
        config = self._recipe.rounding
        if isinstance(config, NearestConfig):
            return nearest.round_weight(transformed, num_bits, scale=config.scale)
        assert self._statistics is not None
        return gptq.round_weight(
            transformed,
            num_bits,
            transform_gram(self._statistics.tensor(f"{name}/gram"), *self._transform(name)),
            scale=config.scale,
            act_order=config.act_order,
            damping=config.damping,
        )

    def layer(
        self,
        name: str,
        integers: Int8[Tensor, "out in"],
        scale: Float[Tensor, "out 1"],
        bias: Float[Tensor, " out"] | None,
        num_bits: int,
    ) -> QuantizedLinear:
        """The layer of these integers."""
        input_scale, block = self._transform(name)
        return QuantizedLinear.from_integers(
            integers,
            scale,
            bias,
            num_bits=num_bits,
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
        index = self._policy.denoising_step.index if table is not None and len(table) > 1 else 0
        integers, scale = quantize_activations(
            transform(x.float(), input_scale, rotation), bits, None if table is None else table[index]
        )
        read = transform(integers * scale, None, rotation)
        return read if input_scale is None else read / input_scale

    def layers(
        self, options: Mapping[str, tuple[int, ...]], *, progress: Callable[[int, int], None]
    ) -> Iterator[tuple[str, Tensor]]:
        """Rounds every layer to each of its bits: int8 ``<layer>/<bits>/integers``, float32 ``<layer>/<bits>/scale``.

        Args:
            options: Bits of each layer.
            progress: Called as progress(done, total) after every layer.
        """
        for done, (name, bits) in enumerate(options.items(), start=1):
            weight = self.transformed(name, float_linear(self._policy, name).weight)
            for num_bits in bits:
                integers, scale = self.round(name, weight, num_bits)
                yield f"{name}/{num_bits}/integers", integers
                yield f"{name}/{num_bits}/scale", scale
            progress(done, len(options))

    def _activation_bits(self, name: str) -> int:
        return self._recipe.activation_bits.of(self._roles[name])

    def _activation_scale(self, name: str) -> Float[Tensor, " steps"] | None:
        """The static scales of a layer; None for dynamic ones."""
        if self._recipe.activations.scaling == "dynamic":
            return None
        assert self._ranges is not None
        return static_scale(self._ranges.tensor(f"{name}/range"), self._activation_bits(name))

    def _transform(self, name: str) -> tuple[Float[Tensor, " in"] | None, int]:
        """`input_scale` and `rotation_block` of a layer."""
        config = self._recipe.transform
        weight, input_scale = float_linear(self._policy, name).weight, None
        if config.smoothing:
            assert self._ranges is not None
            absmax = self._ranges.tensor(f"{name}/absmax")
            input_scale = smoothing_scale(weight, absmax, config.smoothing).reciprocal()
        block = config.rotation_block
        return input_scale, block if block and fits(weight.shape[1], block) else 0


class RoundedLayers:
    """Reads what `Rounder.layers` wrote, one layer at a time.

    Args:
        policy: Gives the bias of each layer.
        rounder: Builds the layers.
        artifact: The rounded layers.
    """

    def __init__(self, policy: Policy, rounder: Rounder, artifact: Artifact) -> None:
        self._policy, self._rounder, self._artifact = policy, rounder, artifact

    def layer(self, name: str, num_bits: int) -> QuantizedLinear:
        """The packed layer, with the bias of the full-precision layer."""
        integers, scale = self._rounded(name, num_bits)
        return self._rounder.layer(name, integers, scale, float_linear(self._policy, name).bias, num_bits)

    def weight(self, name: str, num_bits: int) -> Float[Tensor, "out in"]:
        """The rounded weight as floats for the untransformed input (fake quantization), float32."""
        return self._rounder.restored(name, dequantize(*self._rounded(name, num_bits)))

    def quantized_input(self, name: str, x: Float[Tensor, "n in"]) -> Float[Tensor, "n in"]:
        """See `Rounder.quantized_input`."""
        return self._rounder.quantized_input(name, x)

    def _rounded(self, name: str, num_bits: int) -> tuple[Int8[Tensor, "out in"], Float[Tensor, "out 1"]]:
        prefix = f"{name}/{num_bits}"
        return self._artifact.tensor(f"{prefix}/integers"), self._artifact.tensor(f"{prefix}/scale")
