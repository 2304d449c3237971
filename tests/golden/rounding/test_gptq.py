"""GPTQ against optimal brain quantization written out column by column in numpy, and against exhaustive search."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from daptq.errors import InvalidInputError, RecipeError
from daptq.numerics.scales import absmax_scale, searched_scale
from daptq.rounding.gptq import BLOCK, GptqConfig, round_weight

Matrix = NDArray[np.float64]


def example(out_features: int, in_features: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight and the Gram matrix of correlated inputs whose channels differ in size."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out_features, in_features, generator=generator)
    shared = torch.randn(4 * in_features, max(1, in_features // 4), generator=generator, dtype=torch.float64)
    x = shared @ torch.randn(shared.shape[1], in_features, generator=generator, dtype=torch.float64)
    x += 0.5 * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    x *= torch.exp(0.5 * torch.randn(in_features, generator=generator, dtype=torch.float64))
    return weight, x.mT @ x


def damped(gram: Tensor, damping: float) -> Matrix:
    matrix: Matrix = gram.numpy().copy()
    matrix += damping * np.trace(matrix) / len(matrix) * np.eye(len(matrix))
    return matrix


def row_error(difference: Matrix, hessian: Matrix) -> float:
    return float(difference @ hessian @ difference)


def brain_surgeon(weight: Tensor, scale: Tensor, limit: int, hessian: Matrix, order: list[int]) -> NDArray[np.int64]:
    """Rounds column by column, keeping the inverse of the Gram matrix of the columns that are left up to date."""
    result = np.zeros(weight.shape, dtype=np.int64)
    for row, (values, step) in enumerate(zip(weight.double().numpy(), scale.double().numpy()[:, 0], strict=True)):
        left, inverse = values.copy(), np.linalg.inv(hessian)
        for column in order:
            integer = np.clip(np.rint(left[column] / step), -limit, limit)
            result[row, column] = integer
            left -= (left[column] - integer * step) / inverse[column, column] * inverse[column]
            inverse -= np.outer(inverse[:, column], inverse[column]) / inverse[column, column]
            left[column], inverse[column, column] = integer * step, 1.0
        nearest = np.clip(np.rint(values / step), -limit, limit)
        if row_error(values - nearest * step, hessian) <= row_error(values - result[row] * step, hessian):
            result[row] = nearest
    return result


@pytest.mark.parametrize("num_bits", [2, 3, 4, 8])
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("in_features", [1, 37, BLOCK + 21])
def test_integers_are_those_of_optimal_brain_quantization(num_bits: int, act_order: bool, in_features: int) -> None:
    weight, gram = example(5, in_features)
    rounded = round_weight(weight, num_bits, gram, act_order=act_order)
    integers, scale = rounded.integers, rounded.scale
    order = np.argsort(-np.diag(gram.numpy()), kind="stable") if act_order else np.arange(in_features)
    limit = 2 ** (num_bits - 1) - 1
    # Both work in float64: a difference of 1e-12 changes an integer only where a quotient lies that near to a half.
    assert np.array_equal(integers.numpy(), brain_surgeon(weight, scale, limit, damped(gram, 0.01), order.tolist()))


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, gram = example(6, 75)
    whole = round_weight(weight, 3, gram).integers
    monkeypatch.setattr("daptq.rounding.gptq.BLOCK", 8)
    assert torch.equal(round_weight(weight, 3, gram).integers, whole)


def test_error_lies_between_the_optimum_and_round_to_nearest() -> None:
    reached = nearest_total = optimum = 0.0
    for seed in range(40):
        weight, gram = example(1, 5, seed)
        hessian = damped(gram, 0.0)
        rounded = round_weight(weight, 2, gram, damping=0.0)
        integers, scale = rounded.integers, rounded.scale
        row, step = weight.double().numpy()[0], float(scale)
        errors = {k: row_error(row - step * np.array(k), hessian) for k in itertools.product((-1, 0, 1), repeat=5)}
        nearest = tuple(np.clip(np.rint(row / step), -1, 1).astype(int).tolist())
        reached += errors[tuple(integers[0].tolist())]
        nearest_total += errors[nearest]
        optimum += min(errors.values())
        assert errors[tuple(integers[0].tolist())] <= errors[nearest]
    assert optimum <= reached < nearest_total


def test_searched_scale_weighs_columns_by_the_diagonal() -> None:
    weight, gram = example(4, 40)
    scale = round_weight(weight, 4, gram).scale
    longest = absmax_scale(weight, 4).double()
    importance = gram.diagonal() + 0.01 * gram.diagonal().mean()
    for row in range(4):
        tried = {}
        for hundredths in range(10, 101):
            step = float(longest[row].float()) * hundredths / 100
            rounded = torch.round(weight[row].double() / step).clamp(-7, 7) * step
            tried[hundredths] = float(((weight[row].double() - rounded) ** 2 * importance).sum())
        chosen = round(100 * float(scale[row] / longest[row]))
        # Candidates are float32, the ones here float64: neighbours that tie to seven digits may change places.
        assert tried[chosen] <= min(tried.values()) * (1 + 1e-5)
    assert not torch.equal(scale, searched_scale(weight, 4))
    assert torch.equal(round_weight(weight, 4, gram, scale="absmax").scale, absmax_scale(weight, 4))


def test_a_column_that_was_never_seen_is_rounded_to_nearest_and_disturbs_nothing() -> None:
    weight, gram = example(4, 12)
    gram[5] = gram[:, 5] = 0
    rounded = round_weight(weight, 4, gram, scale="absmax", damping=0.0)
    integers, scale = rounded.integers, rounded.scale
    assert torch.equal(integers[:, 5], torch.round(weight[:, 5] / scale[:, 0]).to(torch.int8))
    without = torch.arange(12) != 5
    # A column of zeros keeps the scale and is no part of the smaller problem.
    zeroed = weight.clone()
    zeroed[:, 5] = 0
    rounded = round_weight(weight[:, without], 4, gram[without][:, without], scale="absmax", damping=0.0)
    smaller, same = rounded.integers, rounded.scale
    untouched = (zeroed.abs().amax(dim=1) == weight.abs().amax(dim=1)).tolist()
    assert any(untouched)
    for row in np.flatnonzero(untouched):
        assert float(scale[row]) == float(same[row])
        assert torch.equal(integers[row, without], smaller[row])
    assert torch.equal(
        round_weight(weight, 4, torch.zeros_like(gram)).integers, round_weight(weight, 4, torch.eye(12)).integers
    )


def test_what_is_no_gram_matrix_is_refused() -> None:
    weight, gram = example(3, 6)
    for wrong in (gram[:5, :5], gram * torch.nan):
        with pytest.raises(InvalidInputError, match=r"gram must be a finite matrix of shape \(6, 6\)"):
            round_weight(weight, 4, wrong)
    with pytest.raises(InvalidInputError, match="gram must be symmetric"):
        round_weight(weight, 4, gram.triu())
    singular = torch.ones(6, 6, dtype=torch.float64)
    with pytest.raises(InvalidInputError, match="gram must be positive definite after damping"):
        round_weight(weight, 4, singular, damping=0.0)
    round_weight(weight, 4, singular)
    for wrong in (torch.zeros(6), torch.zeros(0, 6), torch.full((2, 6), torch.nan)):
        with pytest.raises(InvalidInputError, match="weight must be a"):
            round_weight(wrong, 4, gram)


def test_weights_of_columns_that_cannot_be_used_are_refused() -> None:
    for wrong in (torch.ones(5), torch.full((6,), -1.0), torch.full((6,), torch.inf)):
        with pytest.raises(InvalidInputError, match=r"column_weight must be finite, not negative and of shape \(6,\)"):
            searched_scale(torch.ones(3, 6), 4, wrong)


def test_configuration_is_checked() -> None:
    assert GptqConfig().method == "gptq"
    with pytest.raises(RecipeError, match="damping must be a number of at least 0, got -1"):
        GptqConfig(damping=-1)
    with pytest.raises(RecipeError, match="scale must be one of searched, absmax, got 'best'"):
        GptqConfig(scale="best")  # type: ignore[arg-type]
