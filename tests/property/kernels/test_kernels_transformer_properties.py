"""Laws of the fused transformer's operations."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from daptq.kernels.transformer import op
from daptq.layers.bfloat16_linear import BFloat16Linear

pytestmark = pytest.mark.skipif(op.unavailable() is not None, reason=str(op.unavailable()))

operations = torch.ops.daptq
sizes = st.integers(1, 70)


def normal(seed: int, *shape: int) -> torch.Tensor:
    """Standard normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(st.integers(0, 99), sizes, sizes, sizes, st.integers(-8, 8))
def test_a_power_of_two_passes_through_a_bfloat16_product(
    seed: int, rows: int, columns: int, outputs: int, power: int
) -> None:
    layer, x = BFloat16Linear(normal(seed, outputs, columns), None), normal(seed + 1, rows, columns)
    assert torch.equal(layer(x * 2.0**power), layer(x) * 2.0**power)


@given(st.integers(0, 99), sizes, sizes, sizes)
def test_outputs_of_a_bfloat16_product_do_not_depend_on_each_other(
    seed: int, rows: int, columns: int, outputs: int
) -> None:
    weight, x = normal(seed, outputs, columns), normal(seed + 1, rows, columns)
    order = torch.randperm(outputs, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(BFloat16Linear(weight, None)(x)[:, order], BFloat16Linear(weight[order], None)(x))


@given(st.integers(0, 99), st.integers(1, 40), st.integers(1, 4), st.integers(1, 40), st.booleans())
def test_attention_gives_means_of_the_values(seed: int, length: int, heads: int, size: int, causal: bool) -> None:
    query, key = normal(seed, length, heads * size), normal(seed + 1, length, heads * size)
    value = normal(seed + 2, 1, heads * size).expand(length, -1)
    result = operations.attention(query, key, value, 1, heads, None, causal)
    # Weights that sum to one up to the rounding of at most 40 of them.
    torch.testing.assert_close(result, value.contiguous(), atol=1e-5, rtol=1e-5)


@given(st.integers(0, 99), st.integers(2, 40), st.integers(1, 3), st.integers(1, 20))
def test_causal_attention_does_not_see_what_comes_later(seed: int, length: int, heads: int, size: int) -> None:
    rows = [normal(seed + i, length, heads * size) for i in range(3)]
    before = operations.attention(*rows, 1, heads, None, True)
    for tensor in rows:
        tensor[-1] += 1.0
    assert torch.equal(before[:-1], operations.attention(*rows, 1, heads, None, True)[:-1])


@given(st.integers(0, 99), st.integers(1, 20), st.integers(2, 70))
def test_a_layer_norm_ignores_shift_and_scale(seed: int, rows: int, width: int) -> None:
    x = normal(seed, rows, width)
    x[:, 0], x[:, 1] = -1.0, 1.0  # no row is constant
    first = operations.add_norm(x, None, None, None, 0.0, True)[1]
    second = operations.add_norm(4 * x + 8, None, None, None, 0.0, True)[1]
    torch.testing.assert_close(first, second, atol=1e-4, rtol=1e-4)
