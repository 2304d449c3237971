"""Rotations against Sylvester's matrices, smoothing against its formula, and layers that use both."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from daptq.errors import InvalidInputError, RecipeError
from daptq.layers.quantized_linear import QuantizedLinear
from daptq.numerics.rotation import fits, hadamard, rotate
from daptq.rounding.nearest import round_weight
from daptq.rounding.smoothing import smoothing_scale
from daptq.rounding.transform import TransformConfig

blocks = st.sampled_from([1, 2, 4, 8, 16, 32, 64])


def sylvester(size: int) -> Tensor:
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix / math.sqrt(size)


@pytest.mark.parametrize("block", [1, 2, 4, 8, 16, 64])
def test_matrix_is_sylvesters(block: int) -> None:
    exact = sylvester(block)
    # 1 / sqrt(block) is exact for powers of four and rounded once otherwise.
    tolerance = 0 if math.isqrt(block) ** 2 == block else 2**-24
    assert float((hadamard(block).double() - exact).abs().max()) <= tolerance
    x = torch.randn(3, 4 * block, dtype=torch.float64)
    expected = torch.cat([part @ exact for part in x.split(block, dim=1)], dim=1)
    torch.testing.assert_close(rotate(x, block), expected, rtol=1e-6, atol=1e-6)


@given(block=blocks, count=st.integers(1, 5), seed=st.integers(0, 2**31))
def test_rotation_is_orthogonal_and_its_own_inverse(block: int, count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, 3, count * block, generator=generator, dtype=torch.float64)
    turned = rotate(x, block)
    # The matrix is float32: orthogonal up to 2^-23.
    close = {"rtol": 1e-6, "atol": 1e-6 * float(x.norm() * y.norm())}
    torch.testing.assert_close(rotate(turned, block), x, rtol=close["rtol"], atol=close["atol"])
    torch.testing.assert_close(turned.norm(dim=1), x.norm(dim=1), rtol=1e-6, atol=0)
    torch.testing.assert_close(turned @ rotate(y, block).mT, x @ y.mT, rtol=close["rtol"], atol=close["atol"])
    if block > 1:
        assert not torch.allclose(turned, x)


def test_rotation_spreads_an_outlier() -> None:
    x = torch.zeros(1, 32)
    x[0, 5] = 8.0
    assert rotate(x, 16)[0, :16].abs().tolist() == [2.0] * 16
    assert rotate(x, 16)[0, 16:].tolist() == [0.0] * 16


def test_blocks_that_do_not_fit_are_refused() -> None:
    assert fits(48, 16)
    assert not fits(40, 16)
    with pytest.raises(
        InvalidInputError, match=r"last axis must be divisible by the block size 16, got shape \(2, 40\)"
    ):
        rotate(torch.zeros(2, 40), 16)
    for wrong in (0, 3, -4, 2.0):
        with pytest.raises(InvalidInputError, match="block size must be a power of two"):
            fits(48, wrong)  # type: ignore[arg-type]


def test_smoothing_is_its_formula() -> None:
    weight, absmax = torch.randn(6, 8), torch.rand(8) + 0.1
    logarithms = [
        0.15 * math.log(float(absmax[j])) - 0.85 * math.log(float(weight[:, j].abs().max())) for j in range(8)
    ]
    expected = [math.exp(value - sum(logarithms) / 8) for value in logarithms]
    torch.testing.assert_close(smoothing_scale(weight, absmax), torch.tensor(expected), rtol=1e-6, atol=0)
    assert math.prod(smoothing_scale(weight, absmax, 0.5).tolist()) == pytest.approx(1.0, rel=1e-5)
    assert smoothing_scale(weight, absmax, 0.0).tolist() == [1.0] * 8
    # Strength 1/2 makes the ranges of a channel's weights and activations equal up to one factor for all channels.
    scale = smoothing_scale(weight, absmax, 0.5)
    ratio = (weight * scale).abs().amax(dim=0) / (absmax / scale)
    torch.testing.assert_close(ratio, ratio[:1].expand(8))
    absmax[2], weight[:, 4] = 0.0, 0.0
    assert smoothing_scale(weight, absmax)[[2, 4]].tolist() == [1.0, 1.0]
    assert smoothing_scale(torch.zeros(2, 3), torch.zeros(3)).tolist() == [1.0] * 3


def test_ranges_that_cannot_be_are_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"activation_absmax must have shape \(8,\), got \(7,\)"):
        smoothing_scale(torch.randn(6, 8), torch.ones(7))
    for wrong in (-1.0, math.inf, math.nan):
        with pytest.raises(InvalidInputError, match="activation_absmax must be finite and not negative"):
            smoothing_scale(torch.randn(6, 8), torch.full((8,), wrong))
    with pytest.raises(InvalidInputError, match="absmax must be given for smoothing"):
        TransformConfig(smoothing=0.15).of_layer(torch.randn(6, 8), None)
    with pytest.raises(RecipeError, match="rotation_block must be 0 or a power of two, got 12"):
        TransformConfig(rotation_block=12)
    with pytest.raises(RecipeError, match="smoothing must lie between 0 and 1, got 1.5"):
        TransformConfig(smoothing=1.5)


@given(block=st.sampled_from([0, 4, 16]), smoothing=st.sampled_from([0.0, 0.15, 0.5]), seed=st.integers(0, 2**31))
def test_transforms_preserve_the_product_and_the_gram_matrix(block: int, smoothing: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(5, 48, generator=generator)
    x = torch.randn(30, 48, generator=generator) * torch.exp(torch.randn(48, generator=generator))
    transform = TransformConfig(rotation_block=block, smoothing=smoothing).of_layer(weight, x.abs().amax(dim=0))
    transformed, input_scale, rotation = transform.weight(weight), transform.input_scale, transform.rotation_block
    assert (input_scale is None, rotation) == (smoothing == 0, block)
    given = x.double() if input_scale is None else x.double() * input_scale.double()
    given = rotate(given, rotation) if rotation else given
    # The transformed weight is rounded to float32 once.
    exact = x.double() @ weight.double().mT
    bound = 2**-22 * (given.abs() @ transformed.double().abs().mT)
    assert bool(((given @ transformed.double().mT - exact).abs() <= bound).all())
    gram = x.double().mT @ x.double()
    expected = given.mT @ given
    torch.testing.assert_close(transform.gram(gram), expected, rtol=1e-6, atol=1e-6)
    # The input is transformed in float32, as the layer does it; both ways back undo it.
    torch.testing.assert_close(transform.input(x).double(), given, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(transform.restored_input(transform.input(x)), x, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(transform.restored_weight(transformed), weight, rtol=1e-5, atol=1e-5)


def test_a_layer_undoes_the_transform_of_its_weight() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(24, 64, generator=generator)
    x = torch.randn(10, 64, generator=generator) * torch.exp(1.5 * torch.randn(64, generator=generator))
    bias = torch.randn(24, generator=generator)
    transform = TransformConfig(rotation_block=16, smoothing=0.15).of_layer(weight, x.abs().amax(dim=0))
    input_scale, block = transform.input_scale, transform.rotation_block
    rounded = round_weight(transform.weight(weight), 8)
    integers, scale = rounded.integers, rounded.scale
    layer = QuantizedLinear.from_integers(
        integers, scale, bias, num_bits=8, input_scale=input_scale, rotation_block=block
    )
    exact = x.double() @ weight.double().mT + bias.double()
    # 8 bits for both factors: the relative error of the product is about one percent.
    assert float((layer(x) - exact).norm() / exact.norm()) < 0.02
    plain = QuantizedLinear.from_integers(integers, scale, bias, num_bits=8)
    assert float((plain(x) - exact).norm() / exact.norm()) > 0.5
    # The layer is the plain layer behind the transform, bit for bit.
    assert input_scale is not None
    assert torch.equal(layer(x), plain(rotate(x * input_scale, 16)))
    assert float((layer.dequantize() - weight).norm() / weight.norm()) < 0.01


def test_block_is_dropped_where_it_does_not_fit() -> None:
    weight = torch.randn(4, 40)
    transform = TransformConfig(rotation_block=16).of_layer(weight, None)
    assert transform.rotation_block == 0
    assert transform.input_scale is None
    assert torch.equal(transform.weight(weight), weight)


@pytest.mark.parametrize("block", [0, 8])
@pytest.mark.parametrize("scaled", [False, True])
def test_state_casts_and_copies_keep_the_transform(block: int, scaled: bool) -> None:
    rounded = round_weight(torch.randn(6, 24), 4)
    integers, scale = rounded.integers, rounded.scale
    factor = torch.rand(24) + 0.5 if scaled else None
    layer = QuantizedLinear.from_integers(integers, scale, input_scale=factor, rotation_block=block)
    x = torch.randn(3, 24)
    expected = layer(x)
    state = layer.state_dict()
    assert ("input_scale" in state) == scaled
    assert not [key for key in state if "hadamard" in key]
    other = QuantizedLinear.from_integers(
        torch.zeros_like(integers), scale, input_scale=None if factor is None else factor + 1, rotation_block=block
    )
    other.load_state_dict(state)
    assert torch.equal(other(x), expected)
    assert torch.equal(layer.to(torch.bfloat16)(x), expected)
    extra = (24 * 4 if scaled else 0) + block * block * 4
    plain = QuantizedLinear.from_integers(integers, scale)
    other.use_backend("auto")
    assert other.resident_bytes() - other.packed_weight().packed.nbytes == 6 * 4 + 16 + extra
    assert plain.resident_bytes() == 6 * 12 + 6 * 4 + 16


def test_transforms_of_other_sizes_are_refused() -> None:
    rounded = round_weight(torch.randn(6, 24), 4)
    integers, scale = rounded.integers, rounded.scale
    for wrong in (torch.ones(23), torch.zeros(24), torch.full((24,), math.nan)):
        with pytest.raises(InvalidInputError, match=r"input_scale must be positive, finite and of shape \(24,\)"):
            QuantizedLinear.from_integers(integers, scale, input_scale=wrong)
    with pytest.raises(InvalidInputError, match="rotation_block must divide 24 input features, got 16"):
        QuantizedLinear.from_integers(integers, scale, rotation_block=16)
    with pytest.raises(InvalidInputError, match="block size must be a power of two, got 12"):
        QuantizedLinear.from_integers(integers, scale, rotation_block=12)
