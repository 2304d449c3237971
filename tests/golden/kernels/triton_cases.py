"""Runs the Triton kernel for half-precision activations against the reference and writes every case that differs.

Products of half-precision numbers with integers are exact in the float32 that they are summed in, so the kernel must
keep a bound that is far smaller than what every backend must keep.

With TRITON_INTERPRET=1 it runs in Triton's interpreter on the CPU, else on a GPU. Triton reads the variable when it is
imported, so this runs in a process of its own.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

import daptq.kernels.linear.backends.triton_w4a8  # noqa: F401  (registers the operation)
from daptq.kernels.linear.arithmetic import rounding_bound
from daptq.kernels.linear.backends import reference, triton_w4a16
from daptq.kernels.linear.contract import PackedWeight
from daptq.layers.quantized_linear import QuantizedLinear
from daptq.numerics.quantized_matrix import group_count

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
SHAPES = ((1, 7, 5), (17, 100, 33), (34, 192, 70))
GRIDS = ((0, False), (32, True), (0, True), (64, False))


def cases() -> Iterator[tuple[str, PackedWeight, Tensor, Tensor | None, Tensor]]:
    """Name, weight, scales, bias and activations; every shape and every grid at every number of bits."""
    generator = torch.Generator().manual_seed(0)
    combinations = [(bits, SHAPES[i % 3], grid) for bits in (2, 3, 4, 8) for i, grid in enumerate(GRIDS)]
    combinations += [(bits, shape, GRIDS[0]) for bits, shape in itertools.product((4, 8), SHAPES[1:])]
    for num_bits, (rows, in_features, out_features), (group_size, asymmetric) in combinations:
        high, groups = 2 ** (num_bits - 1), group_count(in_features, group_size)
        integers = torch.randint(-high, high, (out_features, in_features), generator=generator, dtype=torch.int8)
        zero = torch.randint(-high, high, (out_features, groups), generator=generator, dtype=torch.int8)
        weight = PackedWeight.from_integers(
            integers, num_bits, group_size=group_size, zero_point=zero if asymmetric else None
        )
        scale = 0.01 + torch.rand(out_features, groups, generator=generator)
        bias = torch.randn(out_features, generator=generator) if rows != 17 else None
        name = f"{num_bits} bits, {rows} x {in_features} x {out_features}, group {group_size}, zero {asymmetric}"
        yield name, weight, scale, bias, torch.randn(rows, in_features, generator=generator)


def differences(factor: float, limit: int | None = None) -> list[str]:
    """Cases in which the kernel differs from the reference, of the first `limit`; scales are multiplied by a factor."""
    found = []
    for name, weight, scale, bias, x in itertools.islice(cases(), limit):
        moved = replace(weight, packed=weight.packed.to(DEVICE), zero_point=placed(weight.zero_point))
        given = (scale * factor).to(DEVICE), placed(bias)
        for dtype in (torch.bfloat16, torch.float16):
            low = x.to(dtype)
            expected = reference.prepare(weight).run(low, scale, bias, 16)
            bound = rounding_bound(low.float(), weight.matrix(scale).dequantize(torch.float64), bias)
            result = triton_w4a16.prepare(moved).run(low.to(DEVICE), *given)
            if not bool(((result.cpu().double() - expected.double()).abs() <= bound).all()):
                found.append(f"{dtype}: {name}")
    return found


def placed(tensor: Tensor | None) -> Tensor | None:
    """A tensor on the device of the kernels."""
    return None if tensor is None else tensor.to(DEVICE)


def checked() -> int:
    """Layers that were checked, after torch's check of the operations; raises what they raise."""
    _, weight, scale, bias, x = next(cases())
    weight = replace(weight, packed=weight.packed.to(DEVICE))
    x, scale, bias = x.to(DEVICE), scale.to(DEVICE), placed(bias)
    given = (x, weight.packed, scale, torch.zeros(len(scale), 1, dtype=torch.int8, device=DEVICE), bias, 2)
    torch.library.opcheck(torch.ops.daptq.linear_w4a8_triton.default, (*given, 0, 8, placed(torch.tensor(0.1))))
    torch.library.opcheck(torch.ops.daptq.linear_w4a16_triton.default, given)
    layers = [
        QuantizedLinear(weight, scale, bias, activation_bits=bits, backend=backend)
        for bits, backend in ((8, "triton-w4a8"), (16, "triton-w4a16"))
    ]
    assert all(torch.equal(layer.weight_packed, weight.packed) for layer in layers)
    assert all(layer.resident_bytes() == weight.nbytes() + 4 * 5 * 2 + 16 for layer in layers)
    assert all(layer(x.bfloat16()).dtype == torch.bfloat16 for layer in layers)
    return len(layers)


if __name__ == "__main__":
    result = {
        "cases": len(list(cases())),
        "differences": differences(1.0),
        "with wrong scales": len(differences(1.001, 3)),
        "checked": checked(),
    }
    sys.stdout.write(json.dumps(result) + "\n")
