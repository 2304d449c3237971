"""Folded weights against the explicit affine map in float64, and the choice among maps."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from daptq.compensation.affine import AffineMap, interface_error
from daptq.compensation.folding import (
    fold_constant,
    fold_gain_into_producer,
    fold_into_consumer,
    fold_into_producer_weight,
)
from daptq.compensation.selection import select_map
from daptq.errors import InvalidInputError
from daptq.numerics.quantized_matrix import QuantizedMatrix

SIZE = 6


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


AFFINE = AffineMap(
    matrix=torch.eye(SIZE, dtype=torch.float64) + 0.2 * normal(SIZE, SIZE, seed=1), shift=normal(SIZE, seed=2)
)
GAIN = AffineMap(matrix=torch.diag(normal(SIZE, seed=3).abs() + 0.1), shift=normal(SIZE, seed=4))


def nearest(weight: Tensor) -> QuantizedMatrix:
    """Three-bit rounding, written out."""
    scale = weight.abs().amax(dim=1, keepdim=True) / 3
    return QuantizedMatrix(integers=torch.round(weight / scale).to(torch.int8), scale=scale, num_bits=3)


@pytest.mark.parametrize("bias", [None, normal(4, seed=6)], ids=["no bias", "bias"])
def test_consumer_equals_the_explicit_map(bias: Tensor | None) -> None:
    weight, z = normal(4, SIZE, seed=5), normal(50, SIZE, seed=7)
    explicit = torch.stack([weight @ (AFFINE.matrix @ row + AFFINE.shift) for row in z])
    explicit = explicit if bias is None else explicit + bias
    folded_weight, folded_bias = fold_into_consumer(weight, bias, AFFINE)
    # Stored in float32: 2^-24 relative on each of six products of magnitude ~3.
    torch.testing.assert_close(z @ folded_weight.double().mT + folded_bias.double(), explicit, rtol=0, atol=3e-6)


def test_constant_is_answered_as_before() -> None:
    weight, bias = normal(4, SIZE, seed=5), normal(4, seed=6)
    folded_weight, folded_bias = fold_into_consumer(weight, bias, AFFINE)
    for shape in ((SIZE,), (1, SIZE), (2, 3, SIZE)):
        constant = normal(*shape, seed=8)
        moved = fold_constant(constant, AFFINE)
        assert moved.shape == constant.shape
        answer = moved.double() @ folded_weight.double().mT + folded_bias.double()
        torch.testing.assert_close(answer, constant @ weight.mT + bias, rtol=0, atol=1e-5)


@pytest.mark.parametrize("bias", [None, normal(SIZE, seed=6).float()], ids=["no bias", "bias"])
def test_gain_folds_into_scales_of_any_grid(bias: Tensor | None) -> None:
    integers = torch.randint(-7, 8, (SIZE, 5), generator=torch.Generator().manual_seed(0)).double()
    scale = (normal(SIZE, 1, seed=9).abs() + 0.01).float()
    x = normal(20, 5, seed=10)
    z = x @ (scale.double() * integers).mT + (0 if bias is None else bias.double())
    new_scale, new_bias = fold_gain_into_producer(scale, bias, GAIN.matrix.diagonal(), GAIN.shift)
    folded = x @ (new_scale.double() * integers).mT + new_bias.double()
    torch.testing.assert_close(folded, GAIN(z), rtol=1e-5, atol=1e-5)
    assert new_scale.dtype == new_bias.dtype == torch.float32


def test_gain_that_a_scale_cannot_express_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="gain must be positive"):
        fold_gain_into_producer(torch.ones(2, 1), None, torch.tensor([1.0, -0.5]), torch.zeros(2))
    with pytest.raises(InvalidInputError, match="one gain per output channel"):
        fold_gain_into_producer(torch.ones(1, 1), None, torch.ones(2), torch.zeros(2))


@pytest.mark.parametrize("bias", [None, normal(SIZE, seed=6)], ids=["no bias", "bias"])
def test_producer_weight_is_the_rounded_product(bias: Tensor | None) -> None:
    weight, x = normal(SIZE, 5, seed=11), normal(20, 5, seed=12)
    result = fold_into_producer_weight(weight, bias, AFFINE, nearest)
    product = AFFINE.matrix @ weight
    expected = nearest(product.float())
    assert torch.equal(result.weight.integers, expected.integers)
    torch.testing.assert_close(result.weight.scale, expected.scale)
    rounded = expected.scale.double() * expected.integers.double()
    assert result.rounding_error == pytest.approx(float((rounded - product).norm() / product.norm()), rel=1e-6)
    # Without the rounding the fold is exact: what remains is what rounding the product does to the output.
    explicit = AFFINE(x @ weight.mT + (0 if bias is None else bias))
    folded = x @ rounded.mT + result.bias.double()
    torch.testing.assert_close(folded - x @ (rounded - product).mT, explicit, rtol=0, atol=1e-6)


def test_rounding_error_of_a_weight_on_the_grid_is_zero() -> None:
    weight = torch.tensor([[3.0, -1.0], [2.0, 3.0]])
    result = fold_into_producer_weight(weight, None, AffineMap.identity(2), nearest)
    assert result.rounding_error == 0.0
    assert result.bias.tolist() == [0.0, 0.0]


def test_interface_error_is_relative_to_the_variance() -> None:
    full, quantized, mean = normal(9, 3, seed=1), normal(9, 3, seed=2), normal(3, seed=3)
    error = sum(float(quantized[i, c] - full[i, c]) ** 2 for i in range(9) for c in range(3))
    spread = sum(float(full[i, c] - mean[c]) ** 2 for i in range(9) for c in range(3))
    assert interface_error(quantized, full, mean) == pytest.approx(error / spread, rel=1e-13)
    assert interface_error(mean.expand(9, 3), full, mean) == pytest.approx(1.0, rel=1e-13)
    assert interface_error(full, full, mean) == 0.0


@pytest.mark.parametrize("rows", [8, 0])
def test_representations_must_belong_together(rows: int) -> None:
    with pytest.raises(InvalidInputError, match="same shape with at least one state"):
        interface_error(torch.zeros(rows, 3), torch.zeros(rows and 9, 3), torch.zeros(3))


def test_affine_map_describes_itself() -> None:
    assert AffineMap.identity(3).is_identity
    assert not GAIN.is_identity
    assert GAIN.is_diagonal
    assert not AFFINE.is_diagonal
    stretched = AffineMap(matrix=torch.diag(torch.tensor([4.0, -0.5], dtype=torch.float64)), shift=torch.zeros(2))
    assert stretched.condition_number == pytest.approx(8.0)
    singular = AffineMap(matrix=torch.diag(torch.tensor([1.0, 0.0], dtype=torch.float64)), shift=torch.zeros(2))
    assert singular.condition_number == math.inf
    with pytest.raises(InvalidInputError, match="shapes"):
        AffineMap(matrix=torch.eye(3), shift=torch.zeros(2))


def offered(quality: dict[str, float]) -> tuple[dict[str, AffineMap], Tensor, Tensor, Tensor]:
    """Maps z -> g z of a representation that was doubled: g = 0.5 is perfect."""
    full = normal(30, 2, seed=0)
    eye = torch.eye(2, dtype=torch.float64)
    maps = {
        name: AffineMap(matrix=gain * eye, shift=torch.zeros(2, dtype=torch.float64)) for name, gain in quality.items()
    }
    return maps, 2 * full, full, full.mean(dim=0)


def test_the_map_with_the_least_error_is_chosen() -> None:
    chosen = select_map(*offered({"a": 0.6, "b": 0.5, "c": 0.4}), max_condition=1e3, always=False)
    assert chosen.name == "b"
    assert chosen.errors["b"] == 0.0
    assert set(chosen.errors) == {"none", "a", "b", "c"}
    assert "the b map is applied, because it has the least error" in chosen.reason


def test_harmful_maps_are_not_applied_and_the_reason_says_so() -> None:
    chosen = select_map(*offered({"a": 3.0, "b": -1.0}), max_condition=1e3, always=False)
    assert chosen.name == "none"
    assert chosen.affine.is_identity
    assert chosen.reason.startswith("no map is applied, because none makes the representation better")


def test_without_a_gain_nothing_is_changed() -> None:
    assert select_map(*offered({"a": 1.0}), max_condition=1e3, always=False).name == "none"


def test_a_recipe_can_insist() -> None:
    chosen = select_map(*offered({"a": 0.5, "b": 3.0}), max_condition=1e3, always=True)
    assert chosen.name == "b"
    assert "always" in chosen.reason


@pytest.mark.parametrize("always", [True, False])
def test_a_map_that_cannot_be_inverted_is_never_applied(always: bool) -> None:
    maps, quantized, full, mean = offered({"a": 0.6})
    maps["b"] = AffineMap(matrix=torch.diag(torch.tensor([0.5, 0.5e-6], dtype=torch.float64)), shift=torch.zeros(2))
    quantized[:, 1] = 0.0
    full[:, 1] = 0.0
    chosen = select_map(maps, quantized, full, mean, max_condition=1e3, always=always)
    assert chosen.errors["b"] < chosen.errors["a"]
    assert chosen.name == "a"
    assert "too ill-conditioned to invert: b" in chosen.reason


@pytest.mark.parametrize("names", [[], ["none"]])
def test_maps_need_names(names: list[str]) -> None:
    with pytest.raises(InvalidInputError, match="maps must be named"):
        select_map(*offered(dict.fromkeys(names, 1.0)), max_condition=1e3, always=False)
