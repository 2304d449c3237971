"""Every backend of the catalog equals the reference bit for bit, at any shape."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from daptq.kernels.linear.backends.float32_carried import exact_length
from daptq.kernels.linear.contract import WEIGHT_BITS, PackedWeight
from daptq.layers import choices, picker
from daptq.layers.picker import REFERENCE, choose, load_backend
from daptq.layers.quantized_linear import QuantizedLinear
from tests.integer_kernels import NAMES


def random_layer(
    rows: int, in_features: int, out_features: int, num_bits: int, seed: int, *, extreme: bool
) -> tuple[PackedWeight, Tensor, Tensor, Tensor]:
    """Weight, scale, bias and activations; extreme ones make every product as large as it can be."""
    generator = torch.Generator().manual_seed(seed)
    high = 2 ** (num_bits - 1)
    integers = torch.randint(-high, high, (out_features, in_features), generator=generator, dtype=torch.int8)
    x = torch.randn(rows, in_features, generator=generator)
    if extreme:
        integers = torch.where(integers < 0, -high, high - 1).to(torch.int8)
        x = torch.where(x < 0, -1.0, 1.0) * 3.7
        integers[0] = -high
        x[0] = 3.7
    scale = 0.001 + torch.rand(out_features, 1, generator=generator)
    bias = torch.randn(out_features, generator=generator)
    return PackedWeight.from_integers(integers, num_bits), scale, bias, x


@settings(max_examples=100)
@given(
    rows=st.integers(1, 40),
    in_features=st.integers(1, 300),
    out_features=st.integers(1, 70),
    num_bits=st.sampled_from(WEIGHT_BITS),
    seed=st.integers(0, 2**32 - 1),
    extreme=st.booleans(),
    with_bias=st.booleans(),
)
def test_every_backend_equals_the_reference(
    rows: int, in_features: int, out_features: int, num_bits: int, seed: int, extreme: bool, with_bias: bool
) -> None:
    weight, scale, bias, x = random_layer(rows, in_features, out_features, num_bits, seed, extreme=extreme)
    given_bias = bias if with_bias else None
    expected = load_backend(REFERENCE).prepare(weight).run(x, scale, given_bias)
    for name in NAMES:
        backend = load_backend(name)
        if backend.unsupported(weight, 8) is None:
            prepared = backend.prepare(weight)
            assert torch.equal(prepared.run(x, scale, given_bias), expected), name
            assert torch.equal(prepared.weight().packed, weight.packed), name


def long_rows(num_bits: int, in_features: int) -> tuple[PackedWeight, Tensor, Tensor]:
    """Weight and activations whose products all have one sign, so that sums become large, and the exact sums."""
    generator = torch.Generator().manual_seed(in_features)
    high = 2 ** (num_bits - 1)
    integers = -torch.randint(high - 1, high + 1, (64, in_features), generator=generator)
    x = torch.randint(100, 128, (8, in_features), generator=generator)
    x[:, 0] = 127  # The scale of every token is 1.
    weight = PackedWeight.from_integers(integers.to(torch.int8), num_bits)
    return weight, x.to(torch.float32), (x.double() @ integers.double().mT).to(torch.float32)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("num_bits", "in_features"), [(8, 1032), (8, 1033), (8, 2060), (4, 16513), (4, 33000), (3, 66000)]
)
def test_backends_stay_exact_where_sums_outgrow_float32(name: str, num_bits: int, in_features: int) -> None:
    weight, x, expected = long_rows(num_bits, in_features)
    backend = load_backend(name)
    if backend.unsupported(weight, 8) is not None:
        # The only reason on a CPU: sums of two products that overflow 16 bits.
        assert (name, num_bits) == ("fbgemm", 8)
        return
    assert torch.equal(backend.prepare(weight).run(x, torch.ones(64, 1), None), expected)


@pytest.mark.parametrize(("num_bits", "in_features"), [(8, 2060), (4, 33000), (3, 66000)])
def test_one_float32_sum_would_not_be_exact_there(num_bits: int, in_features: int) -> None:
    weight, x, expected = long_rows(num_bits, in_features)
    assert in_features > exact_length(num_bits)
    # A library may sum in short blocks; here one term is added after the other.
    products = x[:1] * weight.integers().to(torch.float32)
    sums = torch.from_numpy(np.cumsum(products.numpy(), axis=1, dtype=np.float32)[:, -1])
    assert not torch.equal(sums, expected[0])


@given(
    rows=st.integers(1, 5), num_bits=st.sampled_from(WEIGHT_BITS), seed=st.integers(0, 2**32 - 1), extreme=st.booleans()
)
def test_tokens_do_not_see_each_other(rows: int, num_bits: int, seed: int, extreme: bool) -> None:
    weight, scale, bias, x = random_layer(rows, 20, 7, num_bits, seed, extreme=extreme)
    layer = QuantizedLinear(weight, scale, bias)
    together = layer(x)
    assert torch.equal(together, torch.cat([layer(row.unsqueeze(0)) for row in x]))
    order = torch.randperm(rows)
    assert torch.equal(layer(x[order]), together[order])


def test_a_backend_off_by_one_integer_is_found(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    import daptq.kernels.linear.backends.float32_carried as carried

    weight, scale, bias, x = random_layer(3, 32, 600, 4, 0, extreme=False)

    def off_by_one(given_weight: PackedWeight) -> carried.Float32CarriedLinear:
        integers = given_weight.integers()
        integers[0, 0] += 1 if integers[0, 0] < 7 else -1
        return carried.Float32CarriedLinear(PackedWeight.from_integers(integers, 4))

    monkeypatch.setattr(picker, "_choices", {})
    monkeypatch.setattr(choices, "choices_folder", lambda: tmp_path)
    monkeypatch.setattr(carried, "prepare", off_by_one)
    expected = load_backend(REFERENCE).prepare(weight).run(x, scale, bias)
    assert not torch.equal(carried.prepare(weight).run(x, scale, bias), expected)
    name, prepared = choose(weight, scale, bias, x)
    assert name != "float32-carried"
    assert "kernel float32-carried differs from the reference" in caplog.text
    assert torch.equal(prepared.run(x, scale, bias), expected)
