"""What rounding a layer to b bits costs, to first order in the rounding error that it really makes.

With dW(b) = W_b - W of a layer and g = d value / dW, one backward pass gives g . dW(b) for every layer and every b. A
layer whose input is quantized, too, adds what that does, <A, W_b> with A = sum over tokens of (d value / dy) dx^T. What
the square means depends on the value that is differentiated. For a loss it is the squared first-order change of that
loss. For `probe` its expectation is the drift itself: the probe is a random projection of the action chunk, and

    E[(g . dW)^2] = mean over samples of dW^T J^T G J dW   [mm^2],

J the derivative of the chunk with respect to the weights and G the metric of a drift model: the Gauss-Newton form of
the squared displacement of the tool point. Each step is an unbiased estimate; probes are fresh in every step.

The module does not know what terms of second order in dW add, nor how the errors of several layers meet: costs of
layers do not add up, and a plan has to be verified as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from daptq.errors import CalibrationDataError, InvalidInputError, RecipeError, require_one_of
from daptq.methods import Needs
from daptq.sensitivity.contract import Passes, SensitivityMethod
from daptq.sensitivity.probe import metric_root, probe, probe_generator

__all__ = ["SENSITIVITY", "Estimate", "RoundingSensitivity", "RoundingSensitivityConfig"]

Estimate = Literal["fisher", "first-order"]

# States of one backward pass. Each pass draws one random projection, so small batches give more of them.
STATES_PER_PROBE = 4

BYTES_PER_WEIGHT = 8  # its gradient and what the error of its input adds to it, float32


@dataclass(frozen=True, kw_only=True)
class RoundingSensitivityConfig(SensitivityMethod):
    """How the cost of rounding a layer is estimated.

    Attributes:
        estimate: ``"fisher"``: the drift [mm^2] that the rounding error causes, to first order in it, from probes of
            the predicted chunk; ``"first-order"``: by how much the drift loss (eq. 18) changes.
        states: Calibration states that are used, at least 1.
    """

    method: ClassVar[str] = "rounding"
    gives_costs: ClassVar[bool] = True

    estimate: Estimate = "fisher"
    states: int = 256

    def __post_init__(self) -> None:
        require_one_of("estimate", self.estimate, get_args(Estimate), RecipeError)
        if type(self.states) is not int or self.states < 1:
            raise RecipeError(f"states of the sensitivity must be at least 1, got {self.states}. 256 are usual.")

    @property
    def needs(self) -> Needs:
        """Gradients over calibration data, and the metric that probes are drawn by."""
        return Needs(data=True, gradients=True, metric=self.estimate == "fisher")

    def scores(self, passes: Passes) -> dict[str, dict[int, float]]:
        """Costs, in mm^2 or in units of the drift loss; one pass over the data for as many layers as fit in memory."""
        groups = passes.groups(BYTES_PER_WEIGHT)
        steps = -(-min(self.states, passes.states) // STATES_PER_PROBE)
        costs: dict[str, dict[int, float]] = {}
        for number, group in enumerate(groups):

            def report(done: int, number: int = number) -> None:
                passes.report(number * steps + done, len(groups) * steps)

            costs |= self._one_pass(passes, group, report)
        return costs

    def _one_pass(
        self, passes: Passes, group: tuple[str, ...], report: Callable[[int], None]
    ) -> dict[str, dict[int, float]]:
        """Costs of one group of layers."""
        bits = {name: passes.bits[name] for name in group}
        root = metric_root(passes.metric) if self.estimate == "fisher" else None
        with passes.gradients(group) as (weights, input_error):
            sensitivity = RoundingSensitivity(weights, passes.rounded, bits, input_error)
            for done, (batch, generator) in enumerate(passes.batches(self.states, STATES_PER_PROBE), start=1):
                if root is None:
                    sensitivity.update(passes.loss(batch, generator))
                else:
                    sensitivity.update(probe(passes.chunk(batch, generator), root, probe_generator(generator)))
                report(done)
        return sensitivity.second_moment() if self.estimate == "fisher" else sensitivity.first_order()


class RoundingSensitivity:
    """Accumulates g . dW of several layers and bit-widths over backward passes.

    Args:
        weights: Weight of each layer, by layer name; each must require gradients while `update` runs.
        rounded: Returns the layer's weight as rounded to that many bits, in the weight's shape.
        bits: Bit-widths to judge, at least one, for all layers or for each.
        input_errors: Returns, once the backward pass of a step is done, the layer's matrix A, (out, in); None where its
            input is not quantized. By default no input is.

    Raises:
        InvalidInputError: The bits of a layer are missing, empty or name one twice.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        rounded: Callable[[str, int], Tensor],
        bits: Sequence[int] | Mapping[str, Sequence[int]],
        input_errors: Callable[[str], Tensor | None] = lambda _: None,
    ) -> None:
        by_layer = {name: bits.get(name, ()) if isinstance(bits, Mapping) else bits for name in weights}
        for several in (bits,) if not isinstance(bits, Mapping) else by_layer.values():
            if not several or len(set(several)) != len(several):
                raise InvalidInputError(
                    f"bits must name at least one bit-width, each once, got {list(several)}. Name those to choose from."
                )
        self._weights = dict(weights)
        self._rounded = rounded
        self._input_errors = input_errors
        self._sums = {name: dict.fromkeys(several, 0.0) for name, several in by_layer.items()}
        self._squares = {name: dict.fromkeys(several, 0.0) for name, several in by_layer.items()}
        self.steps = 0

    def update(self, value: Float[Tensor, ""]) -> None:
        """Adds one step: one backward pass, then a product per layer and bit-width in float64.

        Args:
            value: Scalar of this step, a loss or a `probe`; a layer that it does not depend on counts as zero.

        Raises:
            CalibrationDataError: The value or a product is not finite.
            InvalidInputError: A rounded weight has another shape than the weight.
        """
        if not bool(torch.isfinite(value)):
            raise CalibrationDataError(
                f"value of calibration step {self.steps} must be finite, got {float(value.detach())}. Check the "
                "batch's values."
            )
        gradients: tuple[Tensor | None, ...] = torch.autograd.grad(
            value, list(self._weights.values()), allow_unused=True
        )
        products: dict[tuple[str, int], float] = {}
        for (name, weight), gradient in zip(self._weights.items(), gradients, strict=True):
            if gradient is None:
                continue
            slope, full = gradient.to(torch.float64), weight.detach().to(torch.float64)
            error = self._input_errors(name)
            for bits in self._sums[name]:
                low = self._rounded(name, bits)
                if low.shape != weight.shape:
                    raise InvalidInputError(
                        f"weight of layer {name} rounded to {bits} bits must have shape {tuple(weight.shape)}, got "
                        f"{tuple(low.shape)}. Return it dequantized and unpacked."
                    )
                low = low.detach().to(full)
                change = float((slope * (low - full)).sum())
                change += 0.0 if error is None else float((error.to(full) * low).sum())
                if not math.isfinite(change):
                    raise CalibrationDataError(
                        f"change by layer {name} at {bits} bits in calibration step {self.steps} must be finite, got "
                        f"{change}. Check the batch's values and the rounding."
                    )
                products[name, bits] = change
        for (name, bits), change in products.items():
            self._sums[name][bits] += change
            self._squares[name][bits] += change * change
        self.steps += 1

    def first_order(self) -> dict[str, dict[int, float]]:
        """|mean of g . dW| by layer and bits: how far rounding moves the mean of the values, to first order.

        Raises:
            InvalidInputError: No step was added.
        """
        return {
            name: {bits: abs(total) / self._seen() for bits, total in sums.items()} for name, sums in self._sums.items()
        }

    def second_moment(self) -> dict[str, dict[int, float]]:
        """Mean of (g . dW)^2 by layer and bits; with values of `probe` an unbiased estimate of the drift [mm^2].

        Raises:
            InvalidInputError: No step was added.
        """
        return {
            name: {bits: total / self._seen() for bits, total in squares.items()}
            for name, squares in self._squares.items()
        }

    def _seen(self) -> int:
        if self.steps == 0:
            raise InvalidInputError("sensitivity must see at least one calibration step, got 0. Call update first.")
        return self.steps


SENSITIVITY = RoundingSensitivityConfig
