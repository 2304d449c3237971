"""The contract of a sensitivity: what each layer scores, so that an allocation can tell which layers matter.

A method (one file beside this one, which names its configuration ``SENSITIVITY``) scores layers in one of two ways, or
in both: it watches the drift loss of the pass that profiles the full-precision policy, at no further cost, or it runs
passes of its own through `Passes`. It knows neither the recipe nor which methods round and allocate.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import ClassVar, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from daptq.methods import Method
from daptq.policies.contract import Batch

__all__ = ["InputError", "LossWatcher", "Passes", "SensitivityMethod"]

InputError = Callable[[str], Tensor | None]


class LossWatcher(Protocol):
    """Adds up what the drift loss says about layers, over the batches of the profile's pass."""

    def update(self, loss: Float[Tensor, ""]) -> None:
        """Takes in the loss of one batch; its graph reaches the weights that the watcher was made for."""
        ...

    def scores(self) -> dict[str, float]:
        """The score of each layer, once all batches were taken in."""
        ...


class Passes(Protocol):
    """What a method may do with the full-precision policy, its rounded layers and the calibration data."""

    @property
    def bits(self) -> Mapping[str, tuple[int, ...]]:
        """Bits, bfloat16 left out, that each layer to be scored may get, by name in execution order."""
        ...

    @property
    def states(self) -> int:
        """Number of calibration states."""
        ...

    @property
    def loss_scores(self) -> Mapping[str, float]:
        """What the method's `LossWatcher` found; empty if it has none."""
        ...

    @property
    def metric(self) -> Float[Tensor, "k k"]:
        """G of the drift model [mm^2], float64, k = chunk * action; for a method that needs the metric."""
        ...

    def groups(self, bytes_per_weight: int) -> list[tuple[str, ...]]:
        """The layers in consecutive groups; there is memory for so many bytes per weight of a group."""
        ...

    def batches(self, states: int, size: int) -> Iterator[tuple[Batch, torch.Generator]]:
        """The first `states` calibration states in batches of at most `size`, each with the source of its noise."""
        ...

    def weight(self, name: str) -> Float[Tensor, "out in"]:
        """The float weight of a layer, float32, without gradients; one that stays in a file is read from it."""
        ...

    def gradients(self, names: tuple[str, ...]) -> AbstractContextManager[tuple[Mapping[str, Tensor], InputError]]:
        """Within the block the weights of these layers, and no other parameters, require gradients.

        For a method that says in its `needs` that it takes gradients.

        Yields:
            The weights (out, in) by layer, and a function that returns, after a backward pass, the sum over tokens of
            (d value / d output) times the error of the quantized input, (out, in); None where inputs stay as they are.
        """
        ...

    def chunk(self, batch: Batch, generator: torch.Generator) -> Float[Tensor, "b chunk action"]:
        """The predicted chunk, physical units, differentiable."""
        ...

    def loss(self, batch: Batch, generator: torch.Generator) -> Float[Tensor, ""]:
        """The drift loss (eq. 18 of arXiv 2604.11572) of a batch, differentiable."""
        ...

    def rounded(self, name: str, num_bits: int) -> Float[Tensor, "out in"]:
        """The rounded weight of a layer as floats, float32."""
        ...

    def report(self, done: int, total: int) -> None:
        """Tells the user how far the scoring is."""
        ...


class SensitivityMethod(Method):
    """Settings of one sensitivity.

    Attributes:
        gives_costs: Whether the scores say what rounding to each number of bits costs, not negative.
    """

    gives_costs: ClassVar[bool] = False

    def watch_loss(self, weights: Mapping[str, Tensor]) -> LossWatcher | None:  # noqa: ARG002  (overridden)
        """What takes part in the profile's pass; by default nothing does, and the pass needs no gradients.

        Only a method that says in its `needs` that it takes gradients is asked.

        Args:
            weights: Weight (out, in) of each layer to be scored; each requires gradients while the pass runs.
        """
        return None

    @abstractmethod
    def scores(self, passes: Passes) -> dict[str, dict[int, float]]:
        """The score of each layer of `passes.bits` at each of its bits, finite; larger means more sensitive."""
