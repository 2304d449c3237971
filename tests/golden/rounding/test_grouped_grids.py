"""Groups and zero points against exact fractions, brute force and integers in numpy."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

import daptq.kernels.linear.backends.reference as reference
from daptq.errors import InvalidInputError, RecipeError
from daptq.kernels.linear.arithmetic import rounding_bound
from daptq.kernels.linear.contract import PackedWeight
from daptq.layers.quantized_linear import QuantizedLinear
from daptq.numerics.quantized_matrix import QuantizedMatrix, group_columns, quantize_matrix
from daptq.rounding import gptq, nearest
from daptq.rounding.gptq import GptqConfig
from daptq.rounding.nearest import NearestConfig

GRIDS = [(0, True), (32, False), (32, True), (64, True)]


def weights(rows: int = 3, columns: int = 71) -> Tensor:
    """A weight whose groups have different sizes and means; the last group is shorter."""
    generator = torch.Generator().manual_seed(columns)
    weight = torch.randn(rows, columns, generator=generator)
    weight[:, :32] *= 20
    weight[:, 40:] += 2
    weight[0, 64:] = 0
    return weight


def meaning(rounded: QuantizedMatrix, row: int, column: int) -> Fraction:
    """scale (integer - zero point), exactly, with the group looked up by hand."""
    group = column // rounded.group_size if rounded.group_size else 0
    zero = 0 if rounded.zero_point is None else int(rounded.zero_point[row, group])
    return Fraction(float(rounded.scale[row, group])) * (int(rounded.integers[row, column]) - zero)


@pytest.mark.parametrize("num_bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("group_size", "asymmetric"), GRIDS)
def test_absmax_clips_nothing(num_bits: int, group_size: int, asymmetric: bool) -> None:
    weight = weights()
    rounded = nearest.round_weight(weight, num_bits, scale="absmax", group_size=group_size, asymmetric=asymmetric)
    assert rounded.scale.shape == (3, {0: 1, 32: 3, 64: 2}[group_size])
    for row, values in enumerate(weight.tolist()):
        for column, value in enumerate(values):
            step = Fraction(float(rounded.scale[row, column // group_size if group_size else 0]))
            # The quotient is rounded to float32 before it is rounded to an integer: at most 255 * 2^-24 steps.
            allowed = step * (Fraction(1, 2) + Fraction(1, 2**15))
            assert abs(Fraction(value) - meaning(rounded, row, column)) <= allowed


def test_an_asymmetric_grid_reaches_from_the_smallest_to_the_largest_weight() -> None:
    weight = torch.tensor([[-1.0, 0.5, 2.0], [3.0, 4.0, 6.0], [-4.0, -2.5, -1.0], [0.0, 0.0, 0.0]])
    rounded = nearest.round_weight(weight, 2, scale="absmax", asymmetric=True)
    # Zero belongs to every grid: rows of one sign begin or end there.
    assert rounded.scale.tolist() == [[1.0], [2.0], [pytest.approx(4 / 3)], [1.0]]
    assert rounded.zero_point is not None
    assert rounded.zero_point.tolist() == [[-1], [-2], [1], [-2]]
    assert rounded.integers.tolist() == [[-2, -1, 1], [0, 0, 1], [-2, -1, 0], [-2, -2, -2]]


@pytest.mark.parametrize(("group_size", "asymmetric"), GRIDS)
def test_searched_grids_have_the_least_error_of_many(group_size: int, asymmetric: bool) -> None:
    weight = weights()
    rounded = nearest.round_weight(weight, 3, group_size=group_size, asymmetric=asymmetric)
    longest = nearest.round_weight(weight, 3, scale="absmax", group_size=group_size, asymmetric=asymmetric)
    low, high = (-4, 3) if asymmetric else (-3, 3)
    for row in range(3):
        for group, columns in enumerate(group_columns(71, group_size)):
            zero = 0 if longest.zero_point is None else int(longest.zero_point[row, group])
            values = [Fraction(value) for value in weight[row, columns].tolist()]

            def error(
                step: Fraction, values: list[Fraction] = values, zero: int = zero, low: int = low, high: int = high
            ) -> Fraction:
                # The nearest of all points, searched.
                points = [step * (k - zero) for k in range(low, high + 1)]
                return sum((min((value - point) ** 2 for point in points) for value in values), Fraction(0))

            reached = error(Fraction(float(rounded.scale[row, group])))
            tried = [error(Fraction(float(longest.scale[row, group])) * k / 20) for k in range(2, 21)]
            # The search steps by 1/100 of the longest scale: every one of these twentieths is among its candidates.
            assert reached <= min(tried) * Fraction(1 + 10**-5)


@pytest.mark.parametrize("num_bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("group_size", "asymmetric"), GRIDS)
def test_groups_are_rounded_as_matrices_of_their_own(num_bits: int, group_size: int, asymmetric: bool) -> None:
    weight = weights()
    whole = nearest.round_weight(weight, num_bits, group_size=group_size, asymmetric=asymmetric)
    for group, columns in enumerate(group_columns(71, group_size)):
        alone = nearest.round_weight(weight[:, columns], num_bits, asymmetric=asymmetric)
        assert torch.equal(whole.integers[:, columns], alone.integers)
        assert torch.equal(whole.scale[:, group : group + 1], alone.scale)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize(("group_size", "asymmetric"), GRIDS)
def test_gptq_is_the_greedy_solution_written_out(group_size: int, asymmetric: bool, act_order: bool) -> None:
    weight, generator = weights(2, 40), torch.Generator().manual_seed(1)
    x = torch.randn(200, 40, generator=generator, dtype=torch.float64)
    gram = (x @ torch.randn(40, 40, generator=generator, dtype=torch.float64)).mT.cov()
    rounded = gptq.round_weight(
        weight, 3, gram, act_order=act_order, scale="absmax", damping=0.0, group_size=group_size, asymmetric=asymmetric
    )
    plain = nearest.round_weight(weight, 3, scale="absmax", group_size=group_size, asymmetric=asymmetric)
    assert torch.equal(rounded.scale, plain.scale)
    hessian = gram.numpy()
    order = np.argsort(-np.diag(hessian), kind="stable") if act_order else np.arange(40)
    low, high = (-4, 3) if asymmetric else (-3, 3)
    for row in range(2):
        values, chosen = weight[row].double().numpy().copy(), np.zeros(40, dtype=int)
        error = np.zeros(40)
        for place, column in enumerate(order):
            group = column // group_size if group_size else 0
            step = float(plain.scale[row, group])
            zero = 0 if plain.zero_point is None else int(plain.zero_point[row, group])
            chosen[column] = min(max(int(np.rint(values[column] / step)) + zero, low), high)
            error[column] = values[column] - step * (chosen[column] - zero)
            rest = order[place:]
            # Equation 3 with the inverse of what is left, computed anew for each column.
            inverse = np.linalg.inv(hessian[np.ix_(rest, rest)])
            values[rest] -= error[column] / inverse[0, 0] * inverse[0]
        offset = weight[row].double().numpy()
        greedy = offset - step_values(plain, row, chosen)
        usual = offset - step_values(plain, row, plain.integers[row].numpy())
        expected = chosen if greedy @ hessian @ greedy < usual @ hessian @ usual else plain.integers[row].numpy()
        assert rounded.integers[row].tolist() == expected.tolist()


def step_values(grid: QuantizedMatrix, row: int, integers: NDArray[np.int64]) -> NDArray[np.float64]:
    """What integers of a row mean."""
    groups = np.arange(len(integers)) // (grid.group_size or len(integers))
    zero = np.zeros(grid.scale.shape) if grid.zero_point is None else grid.zero_point.numpy()
    return grid.scale.double().numpy()[row, groups] * (integers - zero[row, groups])


def layer_parts(num_bits: int, group_size: int, asymmetric: bool) -> tuple[Tensor, PackedWeight, Tensor, Tensor]:
    """Activations, packed weight, scales and bias of an odd-sized layer."""
    generator = torch.Generator().manual_seed(num_bits)
    high = 2 ** (num_bits - 1)
    groups = len(group_columns(71, group_size))
    integers = torch.randint(-high, high, (9, 71), generator=generator, dtype=torch.int8)
    zero = torch.randint(-high, high, (9, groups), generator=generator, dtype=torch.int8) if asymmetric else None
    weight = PackedWeight.from_integers(integers, num_bits, group_size=group_size, zero_point=zero)
    scale = 0.01 + torch.rand(9, groups, generator=generator)
    return torch.randn(5, 71, generator=generator), weight, scale, torch.randn(9, generator=generator)


@pytest.mark.parametrize("num_bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("group_size", "asymmetric"), GRIDS)
def test_reference_equals_numpy_bit_for_bit(num_bits: int, group_size: int, asymmetric: bool) -> None:
    x, weight, scale, bias = layer_parts(num_bits, group_size, asymmetric)
    step = np.abs(x.numpy()).max(axis=1, keepdims=True) / np.float32(127)
    rounded = np.rint(x.numpy() / step).astype(np.int64)
    zero_points = weight.zero_points()
    total = np.zeros((5, 9), dtype=np.float32)
    for group, columns in enumerate(group_columns(71, group_size)):
        integers = weight.integers()[:, columns].numpy().astype(np.int64)
        if zero_points is not None:
            integers = integers - zero_points[:, group : group + 1].numpy()
        total += (rounded[:, columns] @ integers.T).astype(np.float32) * step * scale[:, group].numpy()
    expected = total + bias.numpy()
    y = reference.prepare(weight).run(x, scale, bias)
    assert np.array_equal(y.numpy(), expected)


@pytest.mark.parametrize("num_bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("group_size", "asymmetric"), [(0, False), *GRIDS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_float_activations_multiply_the_exact_weight(
    num_bits: int, group_size: int, asymmetric: bool, dtype: torch.dtype
) -> None:
    x, weight, scale, bias = layer_parts(num_bits, group_size, asymmetric)
    x = x.to(dtype)
    matrix = weight.matrix(scale)
    values = [[meaning(matrix, row, column) for column in range(71)] for row in range(9)]
    offsets = [Fraction(value) for value in bias.tolist()]

    def exact(token: list[float], row: int) -> float:
        return float(sum((Fraction(a) * w for a, w in zip(token, values[row], strict=True)), offsets[row]))

    expected = torch.tensor([[exact(token, row) for row in range(9)] for token in x.tolist()], dtype=torch.float64)
    y = reference.prepare(weight).run(x, scale, bias, 16)
    assert y.dtype == torch.float32
    # float64 sums of 71 products, rounded to float32 once.
    torch.testing.assert_close(y.double(), expected, rtol=2**-23, atol=1e-12)
    layer = QuantizedLinear(weight, scale, bias, activation_bits=16, backend="float32-carried")
    bound = rounding_bound(x, torch.tensor([[float(v) for v in row] for row in values], dtype=torch.float64), bias)
    # The layer answers in the dtype of its input: one more rounding.
    error = (layer(x).double() - expected).abs()
    assert bool((error <= bound + torch.finfo(dtype).eps * expected.abs()).all())
    # One integer more would be seen.
    wrong = expected + x.double()[:, :1] * scale[:, 0].double()
    if dtype == torch.float32:
        assert bool(((wrong - expected).abs() > bound).any())


def test_grids_that_do_not_exist_are_refused() -> None:
    for config in (NearestConfig, GptqConfig):
        with pytest.raises(RecipeError, match="group_size must be one of 0, 32, 64, 128, got 48"):
            config(group_size=48)
        with pytest.raises(RecipeError, match="asymmetric must be true or false"):
            config(asymmetric=1)  # type: ignore[arg-type]
    integers = torch.zeros(4, 40, dtype=torch.int8)
    with pytest.raises(InvalidInputError, match=r"scale must have shape \(4, 2\)"):
        QuantizedMatrix(integers=integers, scale=torch.ones(4, 1), num_bits=4, group_size=32)
    with pytest.raises(InvalidInputError, match="scale must be positive"):
        QuantizedMatrix(integers=integers, scale=torch.zeros(4, 1), num_bits=4)
    with pytest.raises(InvalidInputError, match=r"zero_point must have shape \(4, 1\)"):
        QuantizedMatrix(
            integers=integers, scale=torch.ones(4, 1), zero_point=torch.zeros(4, 2, dtype=torch.int8), num_bits=4
        )
    with pytest.raises(InvalidInputError, match="group_size must be one of"):
        PackedWeight.from_integers(integers, 4, group_size=-1)
    with pytest.raises(InvalidInputError, match=r"weight_zero_point must be uint8 of shape \(4, 1\)"):
        PackedWeight.from_integers(integers, 4, group_size=32, zero_point=torch.zeros(4, 3, dtype=torch.int8))
    with pytest.raises(InvalidInputError, match="values to quantize must be a finite matrix"):
        quantize_matrix(torch.full((2, 2), torch.nan), torch.ones(2, 1), None, 4)
    with pytest.raises(InvalidInputError, match=r"scale must have shape \(2, 1\)"):
        quantize_matrix(torch.ones(2, 2), torch.ones(2, 2), None, 4)
