"""How much the drift loss changes with each layer's weight (arXiv 2604.11572, eq. 19).

The paper writes phi_l = 1/R sum_r 1/d_out sum_i |dL_drift/dW_l|_i and leaves open how |.|_i reduces the gradient of
output row i over its input columns. Three readings are selectable:

- ``"l2"`` (default): the Euclidean norm of the row. Independent rounding errors of equal size in a row change the
  loss, to first order, by a random amount whose standard deviation is exactly proportional to this norm; it is the
  reading under which phi predicts what rounding does.
- ``"mean"``: the mean absolute value, which does not grow with the number of columns.
- ``"l1"``: the sum of absolute values, the worst case over the signs of the rounding errors.

The module does not know which loss it differentiates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from daptq.errors import CalibrationDataError, InvalidInputError, RecipeError, require_one_of
from daptq.methods import Needs
from daptq.sensitivity.contract import Passes, SensitivityMethod

__all__ = ["SENSITIVITY", "Reduction", "Sensitivity", "SensitivityConfig", "gradient_magnitude"]

Reduction = Literal["l2", "mean", "l1"]


@dataclass(frozen=True, kw_only=True)
class SensitivityConfig(SensitivityMethod):
    """How phi is computed.

    Attributes:
        reduction: Reading of |.|_i in eq. 19, see the module.
    """

    method: ClassVar[str] = "phi"

    reduction: Reduction = "l2"

    def __post_init__(self) -> None:
        require_one_of("reduction of the sensitivity", self.reduction, get_args(Reduction), RecipeError)

    @property
    def needs(self) -> Needs:
        """Gradients of the drift loss over calibration data."""
        return Needs(data=True, gradients=True)

    def watch_loss(self, weights: Mapping[str, Tensor]) -> Sensitivity:
        """Adds up the gradients of the profile's pass."""
        return Sensitivity(weights, self.reduction)

    def scores(self, passes: Passes) -> dict[str, dict[int, float]]:
        """Phi, the same at all bits."""
        return {name: dict.fromkeys(bits, passes.loss_scores[name]) for name, bits in passes.bits.items()}


def gradient_magnitude(gradient: Float[Tensor, "out in"], reduction: Reduction) -> float:
    """1/d_out sum_i |gradient|_i: the average over output rows of the row's magnitude (one term r of eq. 19).

    Args:
        gradient: (out, in) gradient of the loss with respect to a linear layer's weight.
        reduction: How a row is reduced over its columns.

    Raises:
        InvalidInputError: `gradient` is not a matrix.
    """
    if gradient.dim() != 2:
        raise InvalidInputError(
            f"gradient must be a matrix (out, in), got shape {tuple(gradient.shape)}. Pass a weight's."
        )
    values = gradient.detach().to(torch.float64)
    if reduction == "l2":
        rows = values.square().sum(dim=1).sqrt()
    elif reduction == "l1":
        rows = values.abs().sum(dim=1)
    else:
        rows = values.abs().mean(dim=1)
    return float(rows.mean())


class Sensitivity:
    """Accumulates phi of several layers over calibration steps, one backward pass each.

    Args:
        weights: Weight (out, in) of each layer, by layer name; each must require gradients while `update` runs.
        reduction: How a gradient row is reduced over its columns.
    """

    def __init__(self, weights: Mapping[str, Tensor], reduction: Reduction) -> None:
        self._weights = dict(weights)
        self._reduction = reduction
        self._sums = dict.fromkeys(self._weights, 0.0)
        self.steps = 0

    def update(self, loss: Float[Tensor, ""]) -> None:
        """Adds one calibration step.

        Args:
            loss: Scalar loss of this step's batch; a layer that it does not depend on counts as zero.

        Raises:
            CalibrationDataError: The loss or a gradient is not finite.
        """
        if not bool(torch.isfinite(loss)):
            raise CalibrationDataError(
                f"drift loss of calibration step {self.steps} must be finite, got {float(loss.detach())}. "
                "Check the batch's values."
            )
        gradients = torch.autograd.grad(loss, list(self._weights.values()), allow_unused=True)
        for name, gradient in zip(self._weights, gradients, strict=True):
            magnitude = 0.0 if gradient is None else gradient_magnitude(gradient, self._reduction)
            if not magnitude < float("inf"):
                raise CalibrationDataError(
                    f"gradient of layer {name} in calibration step {self.steps} must be finite, got {magnitude}. "
                    "Check the batch's values."
                )
            self._sums[name] += magnitude
        self.steps += 1

    def scores(self) -> dict[str, float]:
        """Phi of every layer, the mean over calibration steps.

        Raises:
            InvalidInputError: No step was added.
        """
        if self.steps == 0:
            raise InvalidInputError("sensitivity must see at least one calibration step, got 0. Call update first.")
        return {name: total / self.steps for name, total in self._sums.items()}


SENSITIVITY = SensitivityConfig
