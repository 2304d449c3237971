"""Eq. 19 against loops and against a linear model whose gradient is known in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from daptq.errors import CalibrationDataError, InvalidInputError, RecipeError
from daptq.sensitivity.gradients import only_gradients_of
from daptq.sensitivity.phi import Reduction, Sensitivity, SensitivityConfig, gradient_magnitude

GRADIENT = torch.randn(4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def loop_magnitude(gradient: list[list[float]], reduction: str) -> float:
    rows = []
    for row in gradient:
        if reduction == "l2":
            rows.append(math.sqrt(sum(value * value for value in row)))
        elif reduction == "l1":
            rows.append(sum(abs(value) for value in row))
        else:
            rows.append(sum(abs(value) for value in row) / len(row))
    return sum(rows) / len(rows)


@pytest.mark.parametrize("reduction", ["l2", "l1", "mean"])
def test_magnitude_is_the_average_over_rows(reduction: Reduction) -> None:
    expected = loop_magnitude(GRADIENT.tolist(), reduction)
    assert gradient_magnitude(GRADIENT, reduction) == pytest.approx(expected, rel=1e-14)


def test_default_magnitude_is_the_deviation_that_random_rounding_causes() -> None:
    # One row, errors independent and uniform in [-1/2, 1/2]: the loss moves by g . e with deviation |g|_2 / sqrt(12).
    row = GRADIENT[:1]
    errors = torch.rand(200_000, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.5
    deviation = float((errors @ row[0]).std())
    # Relative standard error of a deviation from n samples is about 1 / sqrt(2 n) = 0.0016: three of them.
    assert gradient_magnitude(row, SensitivityConfig().reduction) / math.sqrt(12) == pytest.approx(deviation, rel=0.005)


@pytest.mark.parametrize("reduction", ["l2", "l1", "mean"])
def test_phi_of_a_linear_model(reduction: Reduction) -> None:
    generator = torch.Generator().manual_seed(2)
    first = nn.Linear(6, 4, bias=False, dtype=torch.float64)
    second = nn.Linear(6, 2, bias=False, dtype=torch.float64)
    unused = nn.Linear(3, 3, bias=False, dtype=torch.float64)
    batches = [torch.randn(5, 6, generator=generator, dtype=torch.float64) for _ in range(3)]
    sensitivity = Sensitivity({"a": first.weight, "b": second.weight, "c": unused.weight}, reduction)
    expected = {"a": 0.0, "b": 0.0, "c": 0.0}
    for x in batches:
        sensitivity.update((first(x) ** 2).sum() + 3 * second(x).sum())
        # d/dW sum |W x|^2 = 2 W X^T X; d/dW 3 sum W x = 3 in every row of column sums.
        expected["a"] += loop_magnitude((2 * first.weight @ x.mT @ x).tolist(), reduction) / 3
        expected["b"] += loop_magnitude([(3 * x.sum(dim=0)).tolist()] * 2, reduction) / 3
    assert sensitivity.steps == 3
    assert sensitivity.scores() == pytest.approx(expected, rel=1e-12)
    assert first.weight.grad is None


def test_only_chosen_parameters_require_gradients_within_the_block() -> None:
    first = nn.Linear(2, 2)
    model = nn.Sequential(first, nn.Linear(2, 2))
    first.weight.requires_grad_(False)
    with only_gradients_of(model, {"first": first.weight}):
        assert [parameter.requires_grad for parameter in model.parameters()] == [True, False, False, False]
    assert [parameter.requires_grad for parameter in model.parameters()] == [False, True, True, True]


def test_gradients_are_restored_after_an_exception() -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(RuntimeError, match="stop"), only_gradients_of(model, {}):
        raise RuntimeError("stop")
    assert model.weight.requires_grad


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_loss_that_is_not_finite_is_refused(value: float) -> None:
    layer = nn.Linear(1, 1)
    with pytest.raises(CalibrationDataError, match="calibration step 0 must be finite"):
        Sensitivity({"a": layer.weight}, "l2").update(layer(torch.ones(1)).sum() * value)


def test_gradient_that_is_not_finite_is_refused() -> None:
    weight = nn.Parameter(torch.zeros(1, 1))
    with pytest.raises(CalibrationDataError, match="gradient of layer a"):
        Sensitivity({"a": weight}, "l2").update(weight.sqrt().sum())  # 0 with an infinite slope


def test_no_step_has_no_score() -> None:
    with pytest.raises(InvalidInputError, match="at least one calibration step"):
        Sensitivity({}, "l2").scores()


def test_gradient_must_be_a_matrix() -> None:
    with pytest.raises(InvalidInputError, match="matrix"):
        gradient_magnitude(torch.zeros(3), "l2")


def test_unknown_reduction_is_refused() -> None:
    with pytest.raises(RecipeError, match="reduction of the sensitivity must be one of l2, mean, l1"):
        SensitivityConfig(reduction="max")  # type: ignore[arg-type]
