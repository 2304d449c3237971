"""The rounding stage: every layer of a plan's candidates rounded by the recipe's method, one layer after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from jaxtyping import Float, Int8
from torch import Tensor

from daptq.artifacts import Artifact
from daptq.kernels.linear._layer import QuantizedLinear
from daptq.numerics.grid import dequantize
from daptq.policies._base import Policy
from daptq.recipes._allocation import float_linear
from daptq.rounding import gptq, nearest
from daptq.rounding.gptq import GptqConfig
from daptq.rounding.nearest import NearestConfig

__all__ = ["ROUNDED_KIND", "RoundedLayers", "Rounder"]

ROUNDED_KIND = "rounded-layers"


class Rounder:
    """Rounds a weight of a named layer as the recipe says.

    Args:
        config: The rounding method.
        statistics: Artifact with the Gram matrix ``<layer>/gram`` of every layer, where the method reads them.
    """

    def __init__(self, config: NearestConfig | GptqConfig, statistics: Artifact | None) -> None:
        self._config = config
        self._statistics = statistics

    def __call__(
        self, name: str, weight: Float[Tensor, "out in"], num_bits: int
    ) -> tuple[Int8[Tensor, "out in"], Float[Tensor, "out 1"]]:
        """Integers int8 (out, in) and scale float32 (out, 1)."""
        config = self._config
        if isinstance(config, NearestConfig):
            return nearest.round_weight(weight, num_bits, scale=config.scale)
        assert self._statistics is not None
        return gptq.round_weight(
            weight,
            num_bits,
            self._statistics.tensor(f"{name}/gram"),
            scale=config.scale,
            act_order=config.act_order,
            damping=config.damping,
        )

    def layers(
        self, policy: Policy, options: Mapping[str, tuple[int, ...]], *, progress: Callable[[int, int], None]
    ) -> Iterator[tuple[str, Tensor]]:
        """Rounds every layer to each of its bits: int8 ``<layer>/<bits>/integers``, float32 ``<layer>/<bits>/scale``.

        Args:
            policy: Full-precision policy.
            options: Bits of each layer.
            progress: Called as progress(done, total) after every layer.
        """
        for done, (name, bits) in enumerate(options.items(), start=1):
            weight = float_linear(policy, name).weight
            for num_bits in bits:
                integers, scale = self(name, weight, num_bits)
                yield f"{name}/{num_bits}/integers", integers
                yield f"{name}/{num_bits}/scale", scale
            progress(done, len(options))


class RoundedLayers:
    """Reads what `Rounder.layers` wrote, one layer at a time.

    Args:
        policy: Gives the bias of each layer.
        artifact: The rounded layers.
    """

    def __init__(self, policy: Policy, artifact: Artifact) -> None:
        self._policy = policy
        self._artifact = artifact

    def layer(self, name: str, num_bits: int) -> QuantizedLinear:
        """The packed layer, with the bias of the full-precision layer."""
        return QuantizedLinear.from_integers(
            self._artifact.tensor(f"{name}/{num_bits}/integers"),
            self._artifact.tensor(f"{name}/{num_bits}/scale"),
            float_linear(self._policy, name).bias,
            num_bits=num_bits,
        )

    def weight(self, name: str, num_bits: int) -> Float[Tensor, "out in"]:
        """The rounded weight as floats (fake quantization), float32."""
        return dequantize(
            self._artifact.tensor(f"{name}/{num_bits}/integers"), self._artifact.tensor(f"{name}/{num_bits}/scale")
        )
