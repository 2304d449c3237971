"""What groups and zero points promise for any size, and every backend for any grid."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from daptq.allocation.resources import weight_bytes
from daptq.catalog import KERNELS
from daptq.kernels.linear.arithmetic import FLOAT_ACTIVATIONS, rounding_bound
from daptq.kernels.linear.contract import WEIGHT_BITS, PackedWeight
from daptq.layers.picker import REFERENCE, load_backend
from daptq.layers.quantized_linear import QuantizedLinear
from daptq.numerics.quantized_matrix import GROUP_SIZES, group_count, spread
from daptq.rounding.nearest import round_weight

RUNNABLE = [name for name in KERNELS.names() if KERNELS.load(name).unavailable() is None]

bits = st.sampled_from(WEIGHT_BITS)
sizes = st.sampled_from(GROUP_SIZES)
seeds = st.integers(0, 2**32 - 1)


def random_weight(
    seed: int, rows: int, columns: int, num_bits: int, group_size: int, asymmetric: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Any integers and zero points that the bits can hold, and scales."""
    generator = torch.Generator().manual_seed(seed)
    high, groups = 2 ** (num_bits - 1), group_count(columns, group_size)
    integers = torch.randint(-high, high, (rows, columns), generator=generator, dtype=torch.int8)
    zero = torch.randint(-high, high, (rows, groups), generator=generator, dtype=torch.int8) if asymmetric else None
    return integers, zero, 0.001 + torch.rand(rows, groups, generator=generator)


@given(
    rows=st.integers(1, 4),
    columns=st.integers(1, 200),
    num_bits=bits,
    group_size=sizes,
    asymmetric=st.booleans(),
    seed=seeds,
)
def test_packing_keeps_integers_and_zero_points_of_any_size(
    rows: int, columns: int, num_bits: int, group_size: int, asymmetric: bool, seed: int
) -> None:
    integers, zero, scale = random_weight(seed, rows, columns, num_bits, group_size, asymmetric)
    weight = PackedWeight.from_integers(integers, num_bits, group_size=group_size, zero_point=zero)
    assert torch.equal(weight.integers(), integers)
    unpacked = weight.zero_points()
    assert (unpacked is None) == (zero is None)
    assert unpacked is None or zero is None or torch.equal(unpacked, zero)
    # The size that is planned is the size that is stored.
    planned = weight_bytes(rows, columns, num_bits, group_size=group_size, asymmetric=asymmetric)
    assert planned == weight.nbytes() + scale.nbytes
    if zero is not None:
        assert weight.zero_point is not None
        assert 8 * weight.zero_point.shape[1] < zero.shape[1] * num_bits + 8


@given(
    columns=st.integers(1, 150),
    num_bits=bits,
    group_size=sizes,
    asymmetric=st.booleans(),
    searched=st.booleans(),
    seed=seeds,
)
def test_rounding_error_is_at_most_half_a_step_unless_clipped(
    columns: int, num_bits: int, group_size: int, asymmetric: bool, searched: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(3, columns, generator=generator) + torch.randn(3, 1, generator=generator)
    rounded = round_weight(
        weight, num_bits, scale="searched" if searched else "absmax", group_size=group_size, asymmetric=asymmetric
    )
    high = 2 ** (num_bits - 1) - 1
    low = -high - 1 if asymmetric else -high
    assert low <= int(rounded.integers.min()) <= int(rounded.integers.max()) <= high
    step = spread(rounded.scale.double(), columns, group_size)
    error = (weight.double() - rounded.dequantize(torch.float64)).abs()
    # The quotient is rounded to float32 before it is rounded to an integer, which are at most 255 steps from zero.
    inside = error <= step * (0.5 + 255 * 2**-24)
    assert bool((inside | (rounded.integers == low) | (rounded.integers == high)).all())
    assert searched or bool(inside.all())


@given(columns=st.integers(1, 150), num_bits=bits, group_size=sizes, asymmetric=st.booleans(), seed=seeds)
def test_what_is_on_the_grid_stays(columns: int, num_bits: int, group_size: int, asymmetric: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(3, columns, generator=generator)
    once = round_weight(weight, num_bits, scale="absmax", group_size=group_size, asymmetric=asymmetric)
    again = round_weight(once.dequantize(), num_bits, scale="absmax", group_size=group_size, asymmetric=asymmetric)
    torch.testing.assert_close(again.dequantize(), once.dequantize(), rtol=1e-5, atol=1e-6)


def test_a_zero_stays_zero_on_every_grid() -> None:
    weight = torch.tensor([[0.0, 1.0, 3.0], [0.0, -2.0, -3.0], [0.0, -1.0, 5.0], [0.0, 0.0, 0.0]])
    for num_bits in WEIGHT_BITS:
        for asymmetric in (False, True):
            for rule in ("searched", "absmax"):
                rounded = round_weight(weight, num_bits, scale=rule, asymmetric=asymmetric)
                assert rounded.dequantize()[:, 0].tolist() == [0.0] * 4


def test_zero_points_gain_where_weights_have_one_sign() -> None:
    weight = torch.rand(20, 96, generator=torch.Generator().manual_seed(0)) + 0.1
    errors = [
        float((round_weight(weight, 4, group_size=size, asymmetric=asymmetric).dequantize() - weight).norm())
        for size, asymmetric in ((0, False), (32, False), (0, True), (32, True))
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < 0.6 * errors[0]


@settings(max_examples=60)
@given(
    rows=st.integers(1, 35),
    in_features=st.integers(1, 200),
    out_features=st.integers(1, 40),
    num_bits=bits,
    group_size=sizes,
    asymmetric=st.booleans(),
    activation_bits=st.sampled_from([4, 8, FLOAT_ACTIVATIONS]),
    seed=seeds,
    extreme=st.booleans(),
)
def test_every_backend_equals_the_reference(
    rows: int,
    in_features: int,
    out_features: int,
    num_bits: int,
    group_size: int,
    asymmetric: bool,
    activation_bits: int,
    seed: int,
    extreme: bool,
) -> None:
    integers, zero, scale = random_weight(seed, out_features, in_features, num_bits, group_size, asymmetric)
    generator = torch.Generator().manual_seed(seed)
    x, bias = torch.randn(rows, in_features, generator=generator), torch.randn(out_features, generator=generator)
    if extreme:
        high = 2 ** (num_bits - 1)
        integers = torch.full_like(integers, high - 1)
        zero = None if zero is None else torch.full_like(zero, -high)
        x = torch.full_like(x, 3.7)
    weight = PackedWeight.from_integers(integers, num_bits, group_size=group_size, zero_point=zero)
    expected = load_backend(REFERENCE).prepare(weight).run(x, scale, bias, activation_bits)
    bound = rounding_bound(x, weight.matrix(scale).dequantize(torch.float64), bias)
    took = 0
    for name in RUNNABLE:
        backend = load_backend(name)
        if backend.unsupported(weight, activation_bits) is None:
            prepared = backend.prepare(weight)
            result = prepared.run(x, scale, bias, activation_bits)
            if activation_bits == FLOAT_ACTIVATIONS:
                assert bool(((result.double() - expected.double()).abs() <= bound).all()), name
            else:
                assert torch.equal(result, expected), name
            again = prepared.weight()
            assert torch.equal(again.packed, weight.packed)
            assert again.groups == weight.groups
            assert (again.zero_point is None) == (zero is None)
            assert again.zero_point is None or torch.equal(again.zero_point, weight.zero_point)  # type: ignore[arg-type]
            took += 1
    assert took >= 2  # The reference and one that is worth running.


@pytest.mark.parametrize("backend", ["reference", "float32-carried", "auto"])
@pytest.mark.parametrize("activation_bits", [8, FLOAT_ACTIVATIONS])
def test_state_dicts_carry_zero_points(backend: str, activation_bits: int) -> None:
    integers, zero, scale = random_weight(0, 10, 70, 4, 32, True)
    settings = {"group_size": 32, "activation_bits": activation_bits, "backend": backend}
    layer = QuantizedLinear.from_integers(integers, scale, zero_point=zero, **settings)  # type: ignore[arg-type]
    x = torch.randn(5, 70)
    expected = layer(x)
    state = layer.state_dict()
    assert set(state) == {"weight_packed", "weight_scale", "weight_shape", "weight_zero_point"}
    assert state["weight_zero_point"].shape == (10, 2)  # Three zero points of 4 bits.
    blank = QuantizedLinear.from_integers(
        torch.zeros_like(integers),
        torch.ones(10, 3),
        zero_point=torch.zeros(10, 3, dtype=torch.int8),
        **settings,  # type: ignore[arg-type]
    )
    assert not torch.equal(blank(x), expected)
    blank.load_state_dict(state)
    assert layer.backend is not None
    blank.use_backend(layer.backend)
    assert torch.equal(blank(x), expected)
    assert blank.resident_bytes() == layer.resident_bytes()
    del state["weight_zero_point"]
    with pytest.raises(RuntimeError, match=r"Missing key.*weight_zero_point"):
        blank.load_state_dict(state)
    moved = layer.double()
    assert torch.equal(moved(x), expected)
    assert torch.equal(moved.dequantize(), layer.quantized_matrix().dequantize())
