"""The AVX2 kernel equals the reference at any shape, bits, scale and number of threads; tiles give the weight back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from daptq.kernels.linear.backends import avx2, reference
from daptq.kernels.linear.contract import WEIGHT_BITS, PackedWeight

runs_here = pytest.mark.skipif(avx2.unavailable() is not None, reason=str(avx2.unavailable()))


@pytest.fixture
def restored_threads() -> Iterator[None]:
    """Leaves the number of threads as it was."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def random_weight(in_features: int, out_features: int, num_bits: int, generator: torch.Generator) -> PackedWeight:
    high = 2 ** (num_bits - 1)
    integers = torch.randint(-high, high, (out_features, in_features), generator=generator, dtype=torch.int8)
    return PackedWeight.from_integers(integers, num_bits)


@runs_here
@pytest.mark.usefixtures("restored_threads")
@settings(max_examples=150)
@given(
    rows=st.integers(0, 150),
    in_features=st.integers(1, 300),
    out_features=st.integers(1, 100),
    num_bits=st.sampled_from(WEIGHT_BITS),
    activation_bits=st.sampled_from((4, 8)),
    static=st.one_of(st.none(), st.floats(2**-10, 10, width=32)),
    exponent=st.integers(-45, 38),
    threads=st.sampled_from((1, 2)),
    seed=st.integers(0, 2**32 - 1),
    with_bias=st.booleans(),
    strided=st.booleans(),
)
def test_kernel_equals_the_reference(
    rows: int,
    in_features: int,
    out_features: int,
    num_bits: int,
    activation_bits: int,
    static: float | None,
    exponent: int,
    threads: int,
    seed: int,
    with_bias: bool,
    strided: bool,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = random_weight(in_features, out_features, num_bits, generator)
    x = torch.randn(rows, in_features, generator=generator).clamp(-3, 3)
    x = (x.double() * 10.0**exponent).to(torch.float32).nan_to_num()
    if strided:
        x = x.t().contiguous().t()
    scale = 0.001 + torch.rand(out_features, 1, generator=generator)
    bias = torch.randn(out_features, generator=generator) if with_bias else None
    given_scale = None if static is None else torch.tensor(static)
    torch.set_num_threads(threads)
    arguments = (x, scale, bias, activation_bits, given_scale)
    assert torch.equal(avx2.prepare(weight).run(*arguments), reference.prepare(weight).run(*arguments))


@runs_here
@pytest.mark.usefixtures("restored_threads")
@pytest.mark.parametrize("num_bits", WEIGHT_BITS)
@pytest.mark.parametrize(("rows", "in_features", "out_features"), [(300, 192, 576), (34, 1024, 1000), (1, 2048, 2048)])
def test_threads_share_large_products_and_change_nothing(
    num_bits: int, rows: int, in_features: int, out_features: int
) -> None:
    generator = torch.Generator().manual_seed(num_bits)
    prepared = avx2.prepare(random_weight(in_features, out_features, num_bits, generator))
    x, scale = torch.randn(rows, in_features, generator=generator), torch.rand(out_features, 1, generator=generator)
    results: list[Tensor] = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(prepared.run(x, scale, None))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    assert torch.equal(results[0], reference.prepare(prepared.weight()).run(x, scale, None))


@given(
    in_features=st.integers(1, 200),
    out_features=st.integers(1, 60),
    num_bits=st.sampled_from(WEIGHT_BITS),
    seed=st.integers(0, 2**32 - 1),
)
def test_tiles_give_the_weight_back_and_keep_its_bits(
    in_features: int, out_features: int, num_bits: int, seed: int
) -> None:
    weight = random_weight(in_features, out_features, num_bits, torch.Generator().manual_seed(seed))
    prepared = avx2.prepare(weight)
    assert torch.equal(prepared.weight().packed, weight.packed)
    stored = {2: 2, 3: 4, 4: 4, 8: 8}[num_bits]
    inputs, outputs = -(-in_features // 32) * 32, -(-out_features // 16) * 16
    assert prepared.resident_bytes() == inputs * outputs * stored // 8
