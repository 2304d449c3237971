"""Maps of a representation against folded weights: consumers, producer, norm; in float32 and float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from daptq.errors import InvalidInputError
from daptq.interfaces.affine import AffineMap
from daptq.interfaces.contract import Fold, Interface, Tap
from daptq.interfaces.into_consumers import IntoConsumers
from daptq.interfaces.into_norm import IntoNorm
from daptq.interfaces.into_producer import IntoProducer
from daptq.interfaces.map_class import belongs
from tests.golden.interfaces.fold_cases import (
    EXACT,
    MOVED,
    affine_map,
    diagonal_map,
    error,
    map_per_head,
    normal,
    rotary_map,
    with_folded,
)

DTYPES = (torch.float32, torch.float64)


class Network(nn.Module):
    """Producer, norm or nothing, representation, two consumers that also read a constant, and a head."""

    def __init__(self, norm: nn.Module, *, bias: bool) -> None:
        super().__init__()
        self.producer, self.norm = nn.Linear(5, 8, bias=bias), norm
        self.first, self.second = nn.Linear(8, 6, bias=bias), nn.Linear(8, 4)
        self.constant = nn.Parameter(normal(1, 8, seed=11))

    def representation(self, x: Tensor) -> Tensor:
        return self.norm(self.producer(x))

    def answer(self, z: Tensor) -> Tensor:
        read = torch.cat([self.first(z), self.second(z)], dim=1)
        return read + torch.cat([self.first(self.constant), self.second(self.constant)], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(self.representation(x))


def network(dtype: torch.dtype, norm: nn.Module | None = None, *, bias: bool = True) -> Network:
    torch.manual_seed(0)
    made = Network(norm or nn.Identity(), bias=bias)
    for parameter in made.norm.parameters():
        nn.init.normal_(parameter)
    return made.to(dtype)


def check(made: Network, fold: Fold, affine: AffineMap, dtype: torch.dtype) -> None:
    """The folded network answers as the network with the explicit map in between."""
    x = normal(20, 5, seed=12, dtype=dtype)
    expected = made.answer(affine(made.representation(x)).to(dtype))
    assert error(made(x), expected) > MOVED
    assert error(with_folded(made, fold, affine)(x), expected) < EXACT[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True])
def test_consumers_equal_the_explicit_map_and_answer_constants_as_before(dtype: torch.dtype, bias: bool) -> None:
    check(network(dtype, bias=bias), IntoConsumers(("first", "second"), ("constant",)), affine_map(8), dtype)


def test_the_check_of_consumers_can_fail() -> None:
    for fold in (IntoConsumers(("first",), ("constant",)), IntoConsumers(("first", "second"))):
        with pytest.raises(AssertionError):
            check(network(torch.float64), fold, affine_map(8), torch.float64)


def test_constants_of_any_shape_are_moved() -> None:
    affine, weight = affine_map(8), normal(4, 8, seed=1)
    for shape in ((8,), (1, 8), (2, 3, 8)):
        constant = normal(*shape, seed=2)
        folded = IntoConsumers(("c",), ("u",)).folded(affine, {"c.weight": weight, "u": constant})
        bias = folded.layers["c"].bias
        assert bias is not None
        answer = folded.parameters["u"] @ folded.layers["c"].weight.mT + bias
        torch.testing.assert_close(answer, constant @ weight.mT, rtol=0, atol=1e-11)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("affine", [affine_map(8), diagonal_map(8)], ids=["dense", "diagonal"])
def test_producer_equals_the_explicit_map(dtype: torch.dtype, bias: bool, affine: AffineMap) -> None:
    check(network(dtype, bias=bias), IntoProducer("producer"), affine, dtype)


@pytest.mark.parametrize("bias", [None, normal(6, seed=6)], ids=["no bias", "bias"])
def test_a_positive_gain_is_exact_for_integers_of_any_grid(bias: Tensor | None) -> None:
    integers = torch.randint(-7, 8, (6, 5), generator=torch.Generator().manual_seed(0)).double()
    scale = normal(6, 1, seed=9).abs() + 0.01
    tensors = {"p.weight": scale * integers} | ({} if bias is None else {"p.bias": bias})
    affine, x = diagonal_map(6), normal(20, 5, seed=10)
    layer = IntoProducer("p").folded(affine, tensors).layers["p"]
    assert layer.gain is not None
    assert layer.bias is not None
    z = x @ (scale * integers).mT + (0 if bias is None else bias)
    torch.testing.assert_close(x @ (layer.gain[:, None] * scale * integers).mT + layer.bias, affine(z))


def test_no_other_map_is_a_gain() -> None:
    tensors = {"p.weight": normal(6, 5, seed=1)}
    mirrored = AffineMap(matrix=-torch.eye(6).double(), shift=torch.zeros(6).double())
    for affine in (affine_map(6), mirrored):
        assert IntoProducer("p").folded(affine, tensors).layers["p"].gain is None


@pytest.mark.parametrize("dtype", DTYPES)
def test_norms_equal_the_explicit_map(dtype: torch.dtype) -> None:
    check(network(dtype, nn.RMSNorm(8)), IntoNorm("norm"), diagonal_map(8, shifted=False), dtype)
    check(network(dtype, nn.LayerNorm(8)), IntoNorm("norm", bias=True), diagonal_map(8), dtype)


def test_norms_refuse_what_they_cannot_take() -> None:
    tensors = {"n.weight": torch.ones(8), "n.bias": torch.zeros(8)}
    with pytest.raises(InvalidInputError, match="class 'gain'"):
        IntoNorm("n").folded(diagonal_map(8), tensors)
    with pytest.raises(InvalidInputError, match="class 'diagonal'"):
        IntoNorm("n", bias=True).folded(affine_map(8), tensors)


def test_folds_say_what_they_change() -> None:
    assert (IntoConsumers(("a", "b"), ("u",)).layers, IntoConsumers(("a",), ("u",)).parameters) == (("a", "b"), ("u",))
    assert (IntoNorm("n").parameters, IntoNorm("n", bias=True).parameters) == (("n.weight",), ("n.weight", "n.bias"))
    assert IntoConsumers(("a",)).kind(frozenset(["float"])) == "consumer"
    assert IntoConsumers(("a",)).kind(frozenset(["rounded"])) == "consumer-rounded"
    assert IntoProducer("a").kind(frozenset(["rescaled"])) == "producer-scale"
    assert IntoProducer("a").kind(frozenset(["rounded"])) == IntoProducer("a").kind(frozenset(["float"]))


def test_maps_know_their_class() -> None:
    smallest: dict[str, AffineMap] = {
        "affine": affine_map(8),
        "affine-per-head": map_per_head(2, 4),
        "rotary": rotary_map(2, 4),
        "diagonal": diagonal_map(8),
        "gain": diagonal_map(8, shifted=False),
    }
    above = {
        "affine": {"affine"},
        "affine-per-head": {"affine", "affine-per-head"},
        "rotary": {"affine", "affine-per-head", "rotary"},
        "diagonal": {"affine", "affine-per-head", "diagonal"},
        "gain": {"affine", "affine-per-head", "diagonal", "gain"},
    }
    for name, affine in smallest.items():
        assert {other for other in smallest if belongs(affine, other, 2)} == above[name]  # type: ignore[arg-type]
    assert all(belongs(AffineMap.identity(8), name, 2) for name in smallest)  # type: ignore[arg-type]


def test_affine_map_describes_itself() -> None:
    assert AffineMap.identity(3).is_identity
    assert not diagonal_map(3).is_identity
    assert diagonal_map(3).is_diagonal
    assert not affine_map(3).is_diagonal
    stretched = AffineMap(matrix=torch.diag(torch.tensor([4.0, -0.5], dtype=torch.float64)), shift=torch.zeros(2))
    assert stretched.condition_number == pytest.approx(8.0)
    singular = AffineMap(matrix=torch.diag(torch.tensor([1.0, 0.0], dtype=torch.float64)), shift=torch.zeros(2))
    assert singular.condition_number == math.inf
    with pytest.raises(InvalidInputError, match="shapes"):
        AffineMap(matrix=torch.eye(3), shift=torch.zeros(2))


def test_taps_read_the_rows_of_states() -> None:
    plain, tokens = normal(6, 4, seed=1), normal(6, 3, 4, seed=2)
    assert Tap("m").rows(plain, 7) is None, "a call that reads constants alone"
    heads = normal(6, 2, 3, 5, seed=3)
    first, second, rows = Tap("m").rows(plain, 4), Tap("m").rows(tokens, 4), Tap("m", heads=2).rows(heads, 4)
    assert first is not None
    assert second is not None
    assert rows is not None
    assert torch.equal(first, plain[:4, None])
    assert torch.equal(second, tokens[:4])
    assert torch.equal(rows[1, 2], torch.cat([heads[1, 0, 2], heads[1, 1, 2]]))
    for tap, tensor in ((Tap("m"), plain), (Tap("m"), tokens), (Tap("m", heads=2), heads)):
        twice = tap.changed(tensor, 4, lambda rows: 2 * rows)
        assert torch.equal(twice, torch.cat([2 * tensor[:4], tensor[4:]]))
        assert tap.changed(tensor, 7, lambda rows: 2 * rows) is tensor, "a call that reads constants alone"
    turned = Tap("m", heads=2).changed(heads, 4, lambda rows: rows.flip(2))
    assert torch.equal(turned, torch.cat([heads[:4].flip(1, 3), heads[4:]]))
    with pytest.raises(InvalidInputError, match=r"must have shape \(batch, 3, rows, channels\)"):
        Tap("m", heads=3).rows(heads, 4)
    with pytest.raises(InvalidInputError, match="side of a tap"):
        Tap("m", "middle")  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="heads of a tap"):
        Tap("m", heads=-1)
    with pytest.raises(InvalidInputError, match="at least one fold"):
        Interface("name", Tap("m"), ())
