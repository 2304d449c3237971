"""Gram matrices of layer inputs against sums over tokens in float64, and what they say about the loss."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from daptq.calibration.gram import GramStatistics, observe_grams
from daptq.errors import CalibrationDataError, InvalidInputError


class Net(nn.Module):
    """Two linear layers, the first of which runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.idle = nn.Linear(5, 5), nn.Linear(5, 3, bias=False), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(torch.tanh(self.first(x))))


def inputs_of(net: Net, x: Tensor) -> dict[str, list[Tensor]]:
    hidden = torch.tanh(net.first(x))
    return {"first": [x, hidden], "second": [net.first(hidden)]}


def outer_products(rows: Tensor, weights: list[float] | None = None) -> Tensor:
    total = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
    for index, row in enumerate(rows.double()):
        total += (1.0 if weights is None else weights[index]) * torch.outer(row, row)
    return total


BATCHES = [torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
# Sums of a dozen float32 products: 12 * 2^-24 relative to the largest entries.
TOLERANCE = 1e-5


def test_plain_matrices_are_sums_of_outer_products() -> None:
    net = Net()
    with observe_grams(net, ["first", "second"], weighted=False) as statistics:
        for x in BATCHES:
            net(x)
    expected = {name: torch.zeros(5, 5, dtype=torch.float64) for name in ("first", "second")}
    with torch.no_grad():
        for x in BATCHES:
            for name, calls in inputs_of(net, x).items():
                for call in calls:
                    expected[name] += outer_products(call.reshape(-1, 5))
    for name, matrix in expected.items():
        torch.testing.assert_close(statistics.gram(name), matrix, rtol=TOLERANCE, atol=TOLERANCE)
        assert torch.equal(statistics.tensors()[f"{name}/gram"], statistics.gram(name))
    assert statistics.counts == {"first": 36, "second": 18}


def test_weights_are_mean_squared_gradients_at_the_output() -> None:
    net = Net()
    scale = 1e-25  # Squares of such gradients do not exist in float32.
    with observe_grams(net, ["first", "second"], weighted=True) as statistics:
        for x in BATCHES:
            (net(x).square().sum() * scale).backward()
    exact = Net().double()
    exact.load_state_dict({key: value.double() for key, value in net.state_dict().items()})
    expected = {name: torch.zeros(5, 5, dtype=torch.float64) for name in ("first", "second")}
    for x in BATCHES:
        one = exact.first(x.double())
        two = exact.first(torch.tanh(one))
        three = exact.second(two)
        loss = three.square().sum() * scale
        for name, given, output in (
            ("first", x.double(), one),
            ("first", torch.tanh(one), two),
            ("second", two, three),
        ):
            (gradient,) = torch.autograd.grad(loss, output, retain_graph=True)
            squares = [float((row**2).mean()) for row in gradient.reshape(-1, gradient.shape[-1])]
            expected[name] += outer_products(given.detach().reshape(-1, 5), squares)
    for name, matrix in expected.items():
        torch.testing.assert_close(statistics.gram(name) / scale**2, matrix / scale**2, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected["first"] / expected["first"].trace(), torch.eye(5).double() / 5, atol=0.05)


def test_weighted_matrix_predicts_the_change_of_the_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    net = Net().double()
    x = torch.randn(200, 5, generator=generator, dtype=torch.float64)
    # Signs drawn per token and channel make the gradients of different outputs independent, as the matrix assumes.
    signs = torch.randn(200, 3, generator=generator, dtype=torch.float64) * torch.linspace(0.1, 3, 200)[:, None]
    with observe_grams(net, ["second"], weighted=True) as statistics:
        (net(x) * signs).sum().backward()
    given = inputs_of(net, x)["second"][0].detach()
    changes = torch.randn(4000, 3, 5, generator=generator, dtype=torch.float64)
    measured, predicted = 0.0, 0.0
    for change in changes:
        predicted += float((change @ statistics.gram("second") * change).sum())
        token_signs = torch.where(torch.rand(200, 3, generator=generator) < 0.5, -1.0, 1.0)
        measured += float(((given @ change.mT) * signs * token_signs).sum() ** 2)
    # Means of 4000 squares of nearly normal variables: a relative deviation of sqrt(2 / 4000), 4 of them allowed.
    assert measured / predicted == pytest.approx(1.0, abs=0.1)


def test_watching_changes_nothing_and_ends_with_the_block() -> None:
    net = Net()
    plain = net(BATCHES[0])
    plain.sum().backward()
    gradients = [parameter.grad for parameter in net.parameters()]
    net.zero_grad()
    with observe_grams(net, ["first", "second"], weighted=True) as statistics:
        watched = net(BATCHES[0])
        watched.sum().backward()
    assert torch.equal(plain, watched)
    for before, parameter in zip(gradients, net.parameters(), strict=True):
        assert (before is None) == (parameter.grad is None)
        assert before is None or (parameter.grad is not None and torch.equal(before, parameter.grad))
    seen = dict(statistics.counts)
    net(BATCHES[0]).sum().backward()
    assert statistics.counts == seen == {"first": 12, "second": 6}


def test_layers_that_were_not_seen_are_named() -> None:
    net = Net()
    with observe_grams(net, ["first", "idle"], weighted=False) as statistics:
        net(BATCHES[0])
    statistics.gram("first")
    with pytest.raises(InvalidInputError, match="layer idle must run while its inputs are observed"):
        statistics.gram("idle")


def test_an_output_without_a_gradient_cannot_weigh() -> None:
    net = Net().requires_grad_(False)
    with (
        observe_grams(net, ["first"], weighted=True),
        pytest.raises(InvalidInputError, match="output of layer first must require a gradient"),
    ):
        net(BATCHES[0])


def test_calls_without_gradients_do_not_weigh() -> None:
    net = Net()
    with observe_grams(net, ["first"], weighted=True) as statistics:
        with torch.no_grad():
            net(BATCHES[0])
        net(BATCHES[1]).sum().backward()
    with observe_grams(net, ["first"], weighted=True) as alone:
        net(BATCHES[1]).sum().backward()
    assert torch.equal(statistics.gram("first"), alone.gram("first"))


def test_values_that_are_not_finite_are_refused() -> None:
    statistics = GramStatistics()
    statistics.add("x", torch.ones(2, 3))
    with pytest.raises(CalibrationDataError, match="inputs of layer x must be finite"):
        statistics.add("x", torch.full((2, 3), torch.nan))
    assert torch.equal(statistics.gram("x"), torch.full((3, 3), 2.0, dtype=torch.float64))
    statistics.add("x", torch.ones(2, 3), torch.zeros(2, 4))
    assert torch.equal(statistics.gram("x"), torch.full((3, 3), 2.0, dtype=torch.float64))
