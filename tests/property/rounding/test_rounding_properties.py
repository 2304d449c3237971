"""Laws of rounding methods that see the inputs of a layer."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from daptq.numerics.quantized_matrix import quantize_matrix
from daptq.rounding import gptq, nearest

bits = st.sampled_from([2, 3, 4, 8])
seeds = st.integers(0, 2**31)


def problem(seed: int, rows: int, columns: int, samples: int) -> tuple[Tensor, Tensor]:
    """A weight and the Gram matrix of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    x = torch.randn(samples, columns, generator=generator, dtype=torch.float64)
    x = x @ torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    return weight, x.mT @ x


def error(weight: Tensor, integers: Tensor, scale: Tensor, gram: Tensor) -> Tensor:
    """(w - ŵ) H (w - ŵ)^T of each row."""
    difference = weight.double() - integers.double() * scale.double()
    return ((difference @ gram) * difference).sum(dim=1)


@given(num_bits=bits, seed=seeds, samples=st.integers(1, 60), act_order=st.booleans(), damping=st.floats(1e-3, 1.0))
def test_no_row_is_worse_than_round_to_nearest(
    num_bits: int, seed: int, samples: int, act_order: bool, damping: float
) -> None:
    weight, gram = problem(seed, 4, 24, samples)
    rounded = gptq.round_weight(weight, num_bits, gram, act_order=act_order, damping=damping)
    integers, scale = rounded.integers, rounded.scale
    plain = quantize_matrix(weight, scale, None, num_bits).integers
    before = error(weight, plain, scale, gram)
    # float64 sums of 24^2 terms; the Gram matrix may be singular, so the error itself may be zero.
    noise = 1e-10 * float(gram.diagonal().sum()) * scale[:, 0].double() ** 2
    assert bool((error(weight, integers, scale, gram) <= before * (1 + 1e-9) + noise).all())


@given(num_bits=bits, seed=seeds, act_order=st.booleans(), size=st.floats(1e-6, 1e6))
def test_inputs_without_correlation_make_it_round_to_nearest(
    num_bits: int, seed: int, act_order: bool, size: float
) -> None:
    weight, _ = problem(seed, 3, 20, 1)
    rounded = gptq.round_weight(weight, num_bits, size * torch.eye(20), act_order=act_order)
    integers, scale = rounded.integers, rounded.scale
    nearer = nearest.round_weight(weight, num_bits)
    expected, expected_scale = nearer.integers, nearer.scale
    # The weighted search sums in another order: a tie between two scales may fall the other way.
    torch.testing.assert_close(
        error(weight, integers, scale, torch.eye(20).double()),
        error(weight, expected, expected_scale, torch.eye(20).double()),
        rtol=1e-6,
        atol=0,
    )
    assert torch.equal(integers, quantize_matrix(weight, scale, None, num_bits).integers)


@given(num_bits=bits, seed=seeds, exponent=st.integers(-20, 20))
def test_a_multiple_of_the_gram_matrix_and_an_order_of_rows_change_nothing(
    num_bits: int, seed: int, exponent: int
) -> None:
    weight, gram = problem(seed, 4, 12, 40)
    rounded = gptq.round_weight(weight, num_bits, gram)
    integers, scale = rounded.integers, rounded.scale
    again = gptq.round_weight(weight, num_bits, gram * 4.0**exponent)
    same, same_scale = again.integers, again.scale
    assert torch.equal(integers, same)
    assert torch.equal(scale, same_scale)
    rows = torch.randperm(4)
    assert torch.equal(gptq.round_weight(weight[rows], num_bits, gram).integers, integers[rows])


def test_correlated_inputs_gain_much_in_aggregate() -> None:
    before = after = ordered = 0.0
    for seed in range(10):
        weight, gram = problem(seed, 8, 48, 200)
        rounded = nearest.round_weight(weight, 4)
        integers, scale = rounded.integers, rounded.scale
        before += float(error(weight, integers, scale, gram).sum())
        rounded = gptq.round_weight(weight, 4, gram)
        after += float(error(weight, rounded.integers, rounded.scale, gram).sum())
        rounded = gptq.round_weight(weight, 4, gram, act_order=True)
        ordered += float(error(weight, rounded.integers, rounded.scale, gram).sum())
    assert after < 0.6 * before
    assert ordered < 0.6 * before


def test_without_its_guard_the_method_can_be_worse_than_round_to_nearest() -> None:
    worse = 0
    for seed in range(30):
        weight, gram = problem(seed, 4, 24, 6)
        plain = nearest.round_weight(weight, 2, scale="absmax")
        hessian = gptq._damped(gram, 24, 0.01)
        greedy = gptq._round_columns(weight.double(), plain, torch.arange(24), gptq._inverse_factor(hessian))
        scale = plain.scale
        worse += int((error(weight, greedy, scale, hessian) > error(weight, plain.integers, scale, hessian)).sum())
    assert worse > 0
