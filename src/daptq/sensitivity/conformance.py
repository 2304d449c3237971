"""The public conformance suite of a sensitivity: its contract, checked on a network of two layers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from daptq.errors import CheckFailedError
from daptq.policies.contract import Batch
from daptq.sensitivity.contract import InputError, SensitivityMethod
from daptq.sensitivity.gradients import only_gradients_of

__all__ = ["check_sensitivity"]

STATES, CHUNK, ACTION, FEATURES = 24, 2, 3, 5


class _Network(nn.Module):
    """Predicts a chunk from features."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first, self.second = nn.Linear(FEATURES, 8), nn.Linear(8, CHUNK * ACTION)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5, generator=generator)

    def forward(self, x: Float[Tensor, "b features"]) -> Float[Tensor, "b chunk action"]:
        return self.second(torch.tanh(self.first(x))).view(-1, CHUNK, ACTION)


class _Passes:
    """What a method is lent, see `daptq.sensitivity.contract.Passes`."""

    def __init__(self, *, gradients: bool = True) -> None:
        self.network = _Network()
        self._may_take_gradients = gradients
        self.bits: Mapping[str, tuple[int, ...]] = {"first": (2, 4), "second": (4, 8)}
        self.states = STATES
        self.loss_scores: Mapping[str, float] = {}
        self.metric = torch.eye(CHUNK * ACTION, dtype=torch.float64)

    @property
    def weights(self) -> dict[str, Tensor]:
        return {"first": self.network.first.weight, "second": self.network.second.weight}

    def groups(self, bytes_per_weight: int) -> list[tuple[str, ...]]:  # noqa: ARG002  (there is memory for one layer)
        return [(name,) for name in self.bits]

    def batches(self, states: int, size: int) -> Iterator[tuple[Batch, torch.Generator]]:
        features = torch.randn(min(states, STATES), FEATURES, generator=torch.Generator().manual_seed(1))
        for index, part in enumerate(features.split(size)):
            yield {"features": part}, torch.Generator().manual_seed(index)

    def weight(self, name: str) -> Float[Tensor, "out in"]:
        return self.weights[name].detach()

    @contextmanager
    def gradients(self, names: tuple[str, ...]) -> Iterator[tuple[Mapping[str, Tensor], InputError]]:
        if not self._may_take_gradients:
            raise CheckFailedError("gradients must be among the needs of a method that takes them.")
        weights = {name: self.weights[name] for name in names}
        with only_gradients_of(self.network, weights):
            yield weights, lambda _: None

    def chunk(self, batch: Batch, generator: torch.Generator) -> Float[Tensor, "b chunk action"]:  # noqa: ARG002
        return self.network(batch["features"])

    def loss(self, batch: Batch, generator: torch.Generator) -> Float[Tensor, ""]:
        return self.chunk(batch, generator).square().sum(dim=-1).mean()

    def rounded(self, name: str, num_bits: int) -> Float[Tensor, "out in"]:
        weight = self.weight(name)
        step = weight.abs().max() / 2 ** (num_bits - 1)
        return torch.round(weight / step) * step

    def report(self, done: int, total: int) -> None:
        if not 0 <= done <= total:
            raise CheckFailedError(f"progress must lie between 0 and {total}, got {done}.")


def check_sensitivity(method: SensitivityMethod) -> None:
    """Checks that a method keeps the contract of `SensitivityMethod`.

    Raises:
        CheckFailedError: Something differs; the message names the first difference.
    """
    found = []
    for _ in range(2):
        passes = _Passes(gradients=method.needs.gradients)
        watcher = method.watch_loss(passes.weights)
        if watcher is not None and not method.needs.gradients:
            raise CheckFailedError("gradients must be among the needs of a method that watches the loss.")
        if watcher is not None:
            for batch, generator in passes.batches(STATES, 8):
                watcher.update(passes.loss(batch, generator))
            passes.loss_scores = watcher.scores()
        found.append(method.scores(passes))
    scores = found[0]
    if scores != found[1]:
        raise CheckFailedError("scores must be the same at each call.")
    if {name: set(by_bits) for name, by_bits in scores.items()} != {n: set(b) for n, b in _Passes().bits.items()}:
        raise CheckFailedError(f"scores must be of every layer at each of its bits, got {scores}.")
    for name, by_bits in scores.items():
        for bits, score in by_bits.items():
            if not math.isfinite(score) or (method.gives_costs and score < 0):
                raise CheckFailedError(
                    f"score of layer {name} at {bits} bits must be finite, and a cost not negative, got {score}."
                )
