"""Measured times of one product of a linear layer, by its shape and number of bits.

Layers of one shape take the same time whatever their weights, so each shape is measured once, with random weights and
activations. Every candidate multiplies once before the measurement, which is when the kernel is chosen; then those of
a shape take turns in every round, so a machine that slows down slows all of them down. The times hold for this machine
and its number of threads, and are those of a layer by itself: what a policy does between its layers is not in them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import nn

from daptq.errors import InvalidInputError
from daptq.layers.bfloat16_linear import BFloat16Linear
from daptq.layers.quantized_linear import QuantizedLinear
from daptq.numerics.grid import BFLOAT16
from daptq.numerics.quantized_matrix import group_count, quantize_matrix
from daptq.numerics.scales import absmax_scale, range_grid

__all__ = ["measure_layer_times"]


def measure_layer_times(
    shapes: Iterable[tuple[int, int]],
    bits: Iterable[int],
    rows: int,
    *,
    group_size: int = 0,
    asymmetric: bool = False,
    activation_bits: int = 8,
    rounds: int = 30,
) -> dict[tuple[int, int], dict[int, float]]:
    """Median milliseconds of one product with a layer of each shape at each number of bits, on the CPU.

    Args:
        shapes: (out_features, in_features) of the layers; each is measured once, however often it is given.
        bits: 2, 3, 4 or 8 for `QuantizedLinear` with its fastest kernel, 16 for `BFloat16Linear`.
        rows: Rows of the activations, float32.
        group_size: Inputs that share a scale, 0 for one scale per output channel.
        asymmetric: Whether weights have zero points.
        activation_bits: Bits of the activations of a `QuantizedLinear`.
        rounds: Measurements of each candidate.

    Returns:
        Milliseconds by shape and bits.

    Raises:
        InvalidInputError: There are no rows or rounds, or a number of bits has no layer.
    """
    if rows < 1 or rounds < 1:
        raise InvalidInputError(f"rows and rounds must be at least 1, got {rows} and {rounds}. Choose larger numbers.")
    wanted = list(dict.fromkeys(bits))

    make = partial(_layer, group_size=group_size, asymmetric=asymmetric, activation_bits=activation_bits)
    return {shape: _times(shape, wanted, rows, rounds, make) for shape in dict.fromkeys(shapes)}


def _times(
    shape: tuple[int, int], bits: list[int], rows: int, rounds: int, make: Callable[..., nn.Module]
) -> dict[int, float]:
    """Median milliseconds at one shape by bits."""
    generator = torch.Generator().manual_seed(0)
    layers = {num_bits: make(shape, num_bits, generator) for num_bits in bits}
    x = torch.randn(rows, shape[1], generator=generator)
    seconds: dict[int, list[float]] = {num_bits: [] for num_bits in bits}
    with torch.no_grad():
        for layer in layers.values():
            layer(x)
        for index in range(rounds):
            # A layer that streams a large weight leaves cold caches to the next: the order is reversed every time.
            for num_bits in bits if index % 2 else reversed(bits):
                start = time.perf_counter()
                layers[num_bits](x)
                seconds[num_bits].append(time.perf_counter() - start)
    return {num_bits: 1e3 * statistics.median(seconds[num_bits]) for num_bits in bits}


def _layer(
    shape: tuple[int, int],
    num_bits: int,
    generator: torch.Generator,
    *,
    group_size: int,
    asymmetric: bool,
    activation_bits: int,
) -> nn.Module:
    """A layer of random weights with a bias, as a policy would hold it."""
    weight = torch.randn(shape, generator=generator)
    bias = torch.randn(shape[0], generator=generator)
    if num_bits == BFLOAT16:
        return BFloat16Linear(weight, bias)
    scale, zero_point = range_grid(weight, num_bits) if asymmetric else (absmax_scale(weight, num_bits), None)
    groups = group_count(shape[1], group_size)
    return QuantizedLinear.from_integers(
        quantize_matrix(weight, scale, zero_point, num_bits).integers,
        scale.repeat(1, groups),
        bias,
        num_bits=num_bits,
        group_size=group_size,
        zero_point=None if zero_point is None else zero_point.repeat(1, groups),
        activation_bits=activation_bits,
    )
