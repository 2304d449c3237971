"""How well a map repairs an interface, written out in float64, and the choice among maps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from daptq.compensation.error import interface_error
from daptq.compensation.selection import select_map
from daptq.errors import InvalidInputError
from daptq.interfaces.affine import AffineMap


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


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


@pytest.mark.parametrize(
    ("none", "a", "b", "chosen"),
    [(0.9, 0.8, 0.95, "a"), (0.9, 0.95, 0.8, "b"), (0.9, 0.95, 0.95, "none"), (1.0, 2.0, 3.0, "b")],
)
def test_rounding_refuses_maps_where_it_leaves_the_layer_something(
    none: float, a: float, b: float, chosen: str
) -> None:
    """Errors after rounding that reach 1 without a map say that the layer is undone, not which map is better."""
    rounded = {"none": none, "a": a, "b": b}
    found = select_map(
        *offered({"a": 0.6, "b": 0.5}), max_condition=1e3, always=False, rounded_errors=lambda _: rounded
    )
    assert found.name == chosen
    assert found.rounded_errors == rounded


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
