"""The linear operation against integers in numpy and against float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

import daptq.kernels.linear.backends.reference as reference
from daptq.kernels.linear.arithmetic import quantize_activations
from daptq.kernels.linear.contract import PackedWeight
from daptq.layers.bfloat16_linear import BFloat16Linear
from daptq.layers.quantized_linear import QuantizedLinear


def example(num_bits: int, rows: int, in_features: int, out_features: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Activations with tokens of very different size, integers, scales, bias."""
    generator = torch.Generator().manual_seed(num_bits * 1000 + in_features)
    x = torch.randn(rows, in_features, generator=generator)
    x *= torch.exp(2 * torch.randn(rows, 1, generator=generator))
    limit = 2 ** (num_bits - 1) - 1
    integers = torch.randint(-limit, limit + 1, (out_features, in_features), generator=generator, dtype=torch.int8)
    scale = 0.01 + torch.rand(out_features, 1, generator=generator)
    return x, integers, scale, torch.randn(out_features, generator=generator)


def numpy_linear(x: Tensor, integers: Tensor, scale: Tensor, bias: Tensor | None) -> NDArray[np.float32]:
    """The operation written again in numpy: int64 products, every float32 operation on its own."""
    values = x.numpy()
    step = np.abs(values).max(axis=1, keepdims=True) / np.float32(127)
    step = np.where(step == 0, np.float32(1), step)
    rounded = np.rint(values / step).astype(np.int64)
    accumulators = rounded @ integers.numpy().astype(np.int64).T
    result: NDArray[np.float32] = accumulators.astype(np.float32) * step * scale.numpy().T
    offset: NDArray[np.float32] = np.float32(0) if bias is None else bias.numpy()
    return result + offset


@pytest.mark.parametrize("num_bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("rows", "in_features", "out_features"), [(1, 1, 1), (3, 7, 5), (17, 192, 40), (34, 255, 33)])
def test_reference_equals_numpy_bit_for_bit(num_bits: int, rows: int, in_features: int, out_features: int) -> None:
    x, integers, scale, bias = example(num_bits, rows, in_features, out_features)
    packed = PackedWeight.from_integers(integers, num_bits).packed
    for given in (bias, None):
        y = torch.ops.daptq.linear_w4a8(x, packed, scale, given, in_features, num_bits)
        assert np.array_equal(y.numpy(), numpy_linear(x, integers, scale, given))
        assert torch.equal(y, reference.linear_w4a8(x, packed, scale, given, in_features, num_bits))


@pytest.mark.parametrize("num_bits", [2, 3, 4, 8])
def test_layer_is_the_fake_quantized_product_in_float64(num_bits: int) -> None:
    x, integers, scale, bias = example(num_bits, 34, 192, 48)
    layer = QuantizedLinear.from_integers(integers, scale, bias, num_bits=num_bits)
    step = (x.abs().amax(dim=1, keepdim=True) / 127).double()
    # The rounding decision is float32's; everything after it is exact here.
    fake_activations = torch.round(x / step.float()).double() * step
    fake_weight = integers.double() * scale.double()
    products = fake_activations @ fake_weight.mT
    expected = products + bias.double()
    # Scale (1), two products (2) and the sum with the bias (1) are rounded once each in float32: 2^-24 relative.
    tolerance = 3 * 2**-24 * products.abs() + 2**-24 * expected.abs()
    assert bool(((layer(x).double() - expected).abs() <= 1.01 * tolerance).all())
    # Against unquantized activations the error is at most half a step for each input: the sum over |weight| / 2.
    exact = x.double() @ fake_weight.mT + bias.double()
    bound = step / 2 * fake_weight.abs().sum(dim=1) * (1 + 1e-5)
    error = (layer(x).double() - exact).abs()
    assert bool((error <= bound).all())
    assert float(error.max()) > 1e-3  # The activations really are quantized.


def test_activations_are_rounded_per_token_to_eight_bits() -> None:
    x = torch.tensor([[127.0, 0.5, -1.5, 2.5, -127.0], [0.0, 0.0, 0.0, 0.0, 0.0], [1.0, -0.25, 0.1, 0.0, 0.5]])
    integers, scale = quantize_activations(x)
    assert integers[0].tolist() == [127, 0, -2, 2, -127]
    assert integers[1].tolist() == [0] * 5
    assert integers[2].tolist() == [127, -32, 13, 0, 64]
    assert scale[0].item() == 1.0
    assert bool((scale > 0).all())


def test_a_token_of_zeros_gives_the_bias_and_leaves_the_others_alone() -> None:
    x, integers, scale, bias = example(4, 3, 16, 8)
    layer = QuantizedLinear.from_integers(integers, scale, bias)
    x[1] = 0
    y = layer(x)
    assert torch.equal(y[1], bias)
    assert torch.equal(y[[0, 2]], layer(x[[0, 2]]))


@pytest.mark.parametrize("tiny", [1e-38, 1e-40, 1e-45])
def test_tokens_too_small_for_a_normal_scale_stay_finite(tiny: float) -> None:
    x, integers, scale, bias = example(4, 2, 16, 8)
    layer = QuantizedLinear.from_integers(integers, scale, bias)
    y = layer(x.sign() * tiny)
    torch.testing.assert_close(y, bias.expand(2, -1), rtol=0, atol=1e-30)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_bfloat16_layer_equals_the_rounded_float_layer(dtype: torch.dtype) -> None:
    linear = torch.nn.Linear(65, 31)
    layer = BFloat16Linear.from_linear(linear)
    x = torch.randn(4, 9, 65, dtype=dtype)
    weight, bias = linear.weight.bfloat16().to(dtype), linear.bias.bfloat16().to(dtype)
    expected = torch.nn.functional.linear(x, weight, bias)
    if dtype != torch.bfloat16:
        # 65 products and the bias in another order, since the weight lies transposed: each order errs by at most 66 eps
        # times the sum of magnitudes (Higham, eq. 3.3).
        magnitudes = torch.nn.functional.linear(x.abs(), weight.abs(), bias.abs())
        assert bool(((layer(x) - expected).abs() <= 2 * 66 * torch.finfo(dtype).eps * magnitudes).all())
    else:
        assert torch.equal(layer(x), expected)
    assert layer(x).dtype == dtype
    if dtype != torch.bfloat16:
        # bfloat16 keeps 8 significant bits, so rounding to it is visible.
        assert not torch.equal(layer(x), torch.nn.functional.linear(x, linear.weight.to(dtype), linear.bias.to(dtype)))
