"""Activations of 4 and 8 bits with dynamic, static and per-step scales, against numpy and float64."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from daptq.errors import InvalidInputError
from daptq.kernels.linear.arithmetic import quantize_activations
from daptq.kernels.linear.contract import PackedWeight
from daptq.layers import picker
from daptq.layers.picker import REFERENCE, load_backend
from daptq.layers.quantized_linear import QuantizedLinear
from tests.integer_kernels import NAMES


@dataclass
class Step:
    index: int = 0


def example(seed: int = 0, in_features: int = 192) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Activations, 4-bit integers, scales, bias."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(17, in_features, generator=generator)
    integers = torch.randint(-7, 8, (40, in_features), generator=generator, dtype=torch.int8)
    scale = 0.01 + torch.rand(40, 1, generator=generator)
    return x, integers, scale, torch.randn(40, generator=generator)


def numpy_linear(
    x: Tensor, integers: Tensor, scale: Tensor, bias: Tensor, limit: int, static: float | None
) -> NDArray[np.float32]:
    """The operation in numpy: int64 products, every float32 operation on its own."""
    values = x.numpy()
    peaks = np.abs(values).max(axis=1, keepdims=True) / np.float32(limit)
    step = peaks if static is None else np.full_like(peaks, np.float32(static))
    rounded = np.clip(np.rint(values / step), -limit, limit).astype(np.int64)
    accumulators = (rounded @ integers.numpy().astype(np.int64).T).astype(np.float32)
    return accumulators * step * scale.numpy().T + bias.numpy()


@pytest.mark.parametrize(("bits", "limit"), [(4, 7), (8, 127)])
@pytest.mark.parametrize("static", [None, 0.02, 0.3])
@pytest.mark.parametrize("name", NAMES)
def test_layer_equals_numpy_bit_for_bit(bits: int, limit: int, static: float | None, name: str) -> None:
    x, integers, scale, bias = example()
    given_scale = None if static is None else torch.tensor([static])
    layer = QuantizedLinear.from_integers(
        integers, scale, bias, activation_bits=bits, activation_scale=given_scale, backend=name
    )
    assert np.array_equal(layer(x).numpy(), numpy_linear(x, integers, scale, bias, limit, static))
    other = 11 - limit // 127  # No other limit gives this result.
    assert not np.array_equal(layer(x).numpy(), numpy_linear(x, integers, scale, bias, other, static))


@given(
    bits=st.sampled_from([4, 8]),
    static=st.none() | st.floats(0.001, 10.0),
    weight_bits=st.sampled_from([2, 3, 4, 8]),
    seed=st.integers(0, 2**31),
    in_features=st.integers(1, 70),
)
def test_every_backend_equals_the_reference(
    bits: int, static: float | None, weight_bits: int, seed: int, in_features: int
) -> None:
    x, _, scale, bias = example(seed, in_features)
    high = 2 ** (weight_bits - 1)
    generator = torch.Generator().manual_seed(seed)
    integers = torch.randint(-high, high, (40, in_features), generator=generator, dtype=torch.int8)
    weight = PackedWeight.from_integers(integers, weight_bits)
    step = None if static is None else torch.tensor(static)
    expected = load_backend(REFERENCE).prepare(weight).run(x, scale, bias, bits, step)
    for name in NAMES:
        backend = load_backend(name)
        if backend.unsupported(weight, 8) is None:
            assert torch.equal(backend.prepare(weight).run(x, scale, bias, bits, step), expected), name


@pytest.mark.parametrize(("bits", "limit"), [(4, 7), (8, 127)])
def test_static_grids_clip_and_dynamic_ones_do_not(bits: int, limit: int) -> None:
    x = torch.tensor([[0.0, 0.25, 0.75, -0.25, 1e6, -1e6]])
    integers, scale = quantize_activations(x, bits, torch.tensor(0.5))
    assert integers.tolist() == [[0, 0, 2, 0, limit, -limit]]
    assert scale.tolist() == [[0.5]]
    integers, scale = quantize_activations(x, bits)
    assert integers.tolist() == [[0, 0, 0, 0, limit, -limit]]
    assert scale.item() == np.float32(1e6) / np.float32(limit)


def test_four_bits_lose_what_eight_keep() -> None:
    x, integers, scale, bias = example()
    exact = x.double() @ (integers.double() * scale.double()).mT + bias.double()
    errors = {}
    for bits in (4, 8):
        layer = QuantizedLinear.from_integers(integers, scale, bias, activation_bits=bits)
        errors[bits] = float((layer(x) - exact).norm() / exact.norm())
    # A step is max / 7 or max / 127: the errors are in the ratio 127 / 7 = 18 but for chance.
    assert errors[4] / errors[8] == pytest.approx(18.1, rel=0.2)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_operation_passes_opcheck(bits: int, static: bool, bias: bool) -> None:
    x, integers, scale, offset = example(in_features=24)
    layer = QuantizedLinear.from_integers(integers, scale, offset if bias else None)
    arguments = (x, layer.weight_packed, scale, layer.bias, 24, 4, bits, torch.tensor(0.1) if static else None)
    torch.library.opcheck(torch.ops.daptq.linear_w4a8.default, arguments)


@pytest.mark.parametrize("name", [*NAMES, "auto"])
def test_table_takes_the_scale_of_the_present_step(name: str) -> None:
    x, integers, scale, bias = example()
    table = torch.tensor([0.3, 0.02, 0.1])
    layer = QuantizedLinear.from_integers(integers, scale, bias, activation_scale=table, backend=name)
    step = Step()
    layer.follow(step)
    for index in (2, 0, 1):
        step.index = index
        alone = QuantizedLinear.from_integers(integers, scale, bias, activation_scale=table[index : index + 1])
        assert torch.equal(layer(x), alone(x))
    assert not torch.equal(layer(x), QuantizedLinear.from_integers(integers, scale, bias)(x))


class Looped(nn.Module):
    """A model that knows its step and a layer that follows it."""

    def __init__(self, layer: QuantizedLinear) -> None:
        super().__init__()
        self.step, self.layer = Step(), layer
        layer.follow(self.step)


def test_copies_of_a_model_follow_their_own_step() -> None:
    x, integers, scale, _ = example()
    model = Looped(QuantizedLinear.from_integers(integers, scale, activation_scale=torch.tensor([0.3, 0.02])))
    twin = copy.deepcopy(model)
    before = model.layer(x)
    twin.step.index = 1
    assert torch.equal(model.layer(x), before)
    assert not torch.equal(twin.layer(x), before)


def test_a_table_without_a_step_or_past_its_end_is_refused() -> None:
    x, integers, scale, _ = example()
    layer = QuantizedLinear.from_integers(integers, scale, activation_scale=torch.tensor([0.3, 0.02]))
    with pytest.raises(InvalidInputError, match="denoising step must be known and less than 2, .* got none"):
        layer(x)
    for index in (2, -1):
        layer.follow(Step(index))
        with pytest.raises(InvalidInputError, match=f"less than 2, the length of activation_scale, got {index}"):
            layer(x)
    single = QuantizedLinear.from_integers(integers, scale, activation_scale=torch.tensor([0.3]))
    single.follow(Step(7))
    assert bool(torch.isfinite(single(x)).all())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_not_clipped_into_numbers(name: str, bad: float) -> None:
    x, integers, scale, bias = example()
    layer = QuantizedLinear.from_integers(integers, scale, bias, activation_scale=torch.tensor([0.1]), backend=name)
    clean = layer(x)
    x[3, 5] = bad
    y = layer(x)
    assert not bool(torch.isfinite(y[3]).any())
    rest = torch.arange(len(x)) != 3
    assert torch.equal(y[rest], clean[rest])


def test_settings_that_cannot_work_are_refused() -> None:
    _, integers, scale, _ = example()
    for bits in (2, 32, 8.0):
        with pytest.raises(InvalidInputError, match="activation_bits must be 4 or 8"):
            QuantizedLinear.from_integers(integers, scale, activation_bits=bits)  # type: ignore[arg-type]
    for wrong in (torch.tensor(0.1), torch.ones(2, 1), torch.ones(0)):
        with pytest.raises(InvalidInputError, match=r"activation_scale must have shape \(1,\) or \(steps,\)"):
            QuantizedLinear.from_integers(integers, scale, activation_scale=wrong)
    for value in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InvalidInputError, match="activation_scale must be positive and finite"):
            QuantizedLinear.from_integers(integers, scale, activation_scale=torch.tensor([0.1, value]))


def test_state_and_casts_keep_static_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picker, "_choices", {})
    x, integers, scale, bias = example()
    layer = QuantizedLinear.from_integers(
        integers, scale, bias, activation_bits=4, activation_scale=torch.tensor([0.123456789])
    )
    expected = layer(x)
    assert torch.equal(layer.state_dict()["activation_scale"], torch.tensor([0.123456789]))
    other = QuantizedLinear.from_integers(
        torch.zeros_like(integers), scale, bias, activation_bits=4, activation_scale=torch.ones(1)
    )
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), expected)
    assert torch.equal(layer.to(torch.bfloat16)(x), expected)
    assert "activation_scale=static(1)" in repr(layer)
    assert "activation_scale" not in QuantizedLinear.from_integers(integers, scale).state_dict()
