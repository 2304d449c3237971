"""Measures every backend of the quantized linear layer against float32, at the shapes of the policies, and writes JSON.

    python benchmarks/linear_backends.py --output benchmarks/results/<date>-linear-backends.json
    python benchmarks/linear_backends.py --activation-bits 16 --output benchmarks/results/<date>-linear-w4a16.json

Candidates take turns within each round, after a warm-up, so a machine that slows down slows all of them down; ratios
are taken within rounds. Beside the backends of the catalog it measures two ways to multiply integers that daptq does
not use, with the same arithmetic around them: torch._int_mm and oneDNN's quantized linear operation. Every candidate's
result is compared with the reference before it is timed. With floating-point activations there are larger shapes, up to
those of a language model, and no integers to multiply.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from daptq.artifacts import provenance, write_json
from daptq.catalog import KERNELS
from daptq.kernels.linear.arithmetic import FLOAT_ACTIVATIONS, quantize_activations, rescale, rounding_bound
from daptq.kernels.linear.contract import PackedWeight
from daptq.layers.bfloat16_linear import BFloat16Linear
from daptq.layers.picker import REFERENCE
from daptq.layers.quantized_linear import QuantizedLinear
from daptq.numerics.quantized_matrix import quantize_matrix
from daptq.numerics.scales import absmax_scale

FLOAT = "float32"
BFLOAT16 = "bfloat16 resident"

# Rows x input x output features: timestep and state (1, 2), a chunk without (17) and with guidance (34), prompts (48),
# through the reference policy's widths, and through those of DiT-S and DiT-B.
SHAPES = (
    *((rows, 192, 192) for rows in (1, 2, 17, 34, 48)),
    *((34, *sizes) for sizes in ((192, 576), (192, 768), (768, 192))),
    *((48, *sizes) for sizes in ((192, 512), (512, 192), (256, 704))),
    *((34, *sizes) for sizes in ((384, 1152), (384, 1536), (1536, 384))),
    *((rows, 768, 3072) for rows in (1, 17, 34, 64)),
)

# Where activations stay in floating point, what counts is reading the weight: small layers, and those of large models.
FLOAT_SHAPES = tuple(
    (rows, *sizes) for sizes in ((192, 768), (768, 3072), (2048, 2048), (4096, 4096)) for rows in (1, 4, 17, 34)
)

Run = Callable[[], Tensor]


def candidates(
    rows: int, in_features: int, out_features: int, num_bits: int, activation_bits: int
) -> tuple[dict[str, Run], dict[str, float]]:
    """What is timed at one shape, by name, and the bytes per weight that each keeps in memory."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, in_features, generator=generator)
    weight = torch.randn(out_features, in_features, generator=generator)
    bias = torch.randn(out_features, generator=generator)
    scale = absmax_scale(weight, num_bits)
    integers = quantize_matrix(weight, scale, None, num_bits).integers
    linear = torch.nn.Linear(in_features, out_features)
    linear.weight.data, linear.bias.data = weight, bias
    rounded = BFloat16Linear.from_linear(linear)
    runs: dict[str, Run] = {FLOAT: lambda: linear(x), BFLOAT16: lambda: rounded(x)}
    resident: dict[str, float] = {FLOAT: 4.0, BFLOAT16: 2.0}
    packed = PackedWeight.from_integers(integers, num_bits)
    make = partial(QuantizedLinear, packed, scale, bias, activation_bits=activation_bits)
    expected = make(backend="reference")(x)
    for name in KERNELS.names():
        module = KERNELS.load(name)
        slow = name == REFERENCE and activation_bits == FLOAT_ACTIVATIONS
        if not slow and module.unavailable() is None and module.unsupported(packed, activation_bits) is None:
            layer = make(backend=name)
            runs[name] = lambda layer=layer: layer(x)  # type: ignore[misc]
            resident[name] = module.prepare(packed).resident_bytes() / weight.numel()
    if activation_bits != FLOAT_ACTIVATIONS:
        for name, multiply in (("torch._int_mm", int_mm(integers)), ("onednn qlinear", onednn(integers, rows))):
            runs[name] = lambda multiply=multiply: around(multiply, x, scale, bias)  # type: ignore[misc]
            resident[name] = 1.0
    bound = rounding_bound(x, packed.matrix(scale).dequantize(torch.float64), bias)
    allowed = bound if activation_bits == FLOAT_ACTIVATIONS else torch.zeros_like(bound)
    for name, run in runs.items():
        if name not in (FLOAT, BFLOAT16) and not bool(((run().double() - expected.double()).abs() <= allowed).all()):
            raise click.ClickException(f"{name} differs from the reference at {rows} x {in_features} x {out_features}")
    return runs, resident


def around(multiply: Callable[[Tensor], Tensor], x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """The layer's arithmetic around another product of integers."""
    rounded, step = quantize_activations(x)
    return rescale(multiply(rounded), step, scale, bias)


def int_mm(integers: Tensor) -> Callable[[Tensor], Tensor]:
    """torch._int_mm: int8 times int8 to int32."""
    transposed = integers.t()
    return lambda rounded: torch._int_mm(rounded.to(torch.int8), transposed).to(torch.float32)


def onednn(integers: Tensor, rows: int) -> Callable[[Tensor], Tensor]:
    """The quantized linear operation of oneDNN: uint8 with zero point 128 times int8, float32 out."""
    packed = torch.ops.onednn.qlinear_prepack(integers, [rows, integers.shape[1]])
    ones = torch.ones(len(integers))
    zeros = torch.zeros(len(integers), dtype=torch.int32)

    def multiply(rounded: Tensor) -> Tensor:
        shifted = rounded.add_(128).to(torch.uint8)
        return torch.ops.onednn.qlinear_pointwise(
            shifted, 1.0, 128, packed, ones, zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )

    return multiply


def measure(runs: dict[str, Run], rounds: int) -> dict[str, NDArray[np.float64]]:
    """Seconds of each round, by candidate; a round's time is the best of three calls in a row."""
    names = list(runs)
    times = {name: np.zeros(rounds) for name in names}
    for turn in range(-3, rounds):
        for name in names:
            best = np.inf
            for _ in range(3):
                start = time.perf_counter()
                runs[name]()
                best = min(best, time.perf_counter() - start)
            if turn >= 0:
                times[name][turn] = best
    return times


def describe(times: dict[str, NDArray[np.float64]], resident: dict[str, float]) -> list[dict[str, Any]]:
    """Median and quartiles of each candidate, and of its ratio to float32 within rounds (above 1: slower)."""
    entries = []
    for name, seconds in times.items():
        low, median, high = (1e6 * np.percentile(seconds, [25, 50, 75])).tolist()
        ratio_low, ratio, ratio_high = np.percentile(seconds / times[FLOAT], [25, 50, 75]).tolist()
        entries.append(
            {
                "name": name,
                "median_us": median,
                "quartiles_us": [low, high],
                "ratio_to_float32": ratio,
                "ratio_quartiles": [ratio_low, ratio_high],
                "resident_bytes_per_weight": resident[name],
            }
        )
    return entries


@click.command()
@click.option("--output", type=click.Path(path_type=Path), required=True, help="JSON file to write.")
@click.option("--rounds", default=30, show_default=True, help="Measured rounds for each shape.")
@click.option("--threads", default=2, show_default=True, help="Threads that torch uses.")
@click.option("--num-bits", default=4, show_default=True, help="Bits of a weight.")
@click.option("--activation-bits", default=8, show_default=True, help="Bits of an activation, 16: floating point.")
def main(output: Path, rounds: int, threads: int, num_bits: int, activation_bits: int) -> None:
    """Times the backends and writes the result."""
    torch.set_num_threads(threads)
    shapes = []
    with torch.inference_mode():
        for rows, in_features, out_features in FLOAT_SHAPES if activation_bits == FLOAT_ACTIVATIONS else SHAPES:
            runs, resident = candidates(rows, in_features, out_features, num_bits, activation_bits)
            entries = describe(measure(runs, rounds), resident)
            shapes.append(
                {"rows": rows, "in_features": in_features, "out_features": out_features, "candidates": entries}
            )
            listed = "  ".join(f"{entry['name']} {entry['median_us']:.0f}" for entry in entries)
            print(f"{rows} x {in_features} x {out_features} [us]: {listed}", flush=True)
    result = {
        "schema_version": 1,
        "num_bits": num_bits,
        "activation_bits": activation_bits,
        "threads": threads,
        "rounds": rounds,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "shapes": shapes,
        "provenance": provenance(seed=0),
    }
    write_json(output, result)


if __name__ == "__main__":
    main()
