"""Sums up the Gram matrices of the inputs of linear layers while a policy runs, and changes nothing.

Plain: H = sum_t x_t x_t^T over all tokens t, with which (w - ŵ) H (w - ŵ)^T is the squared error of a layer's output.

Weighted: H = sum_t c_t x_t x_t^T, c_t = 1/out sum_i (dL/dy_ti)^2. To first order a rounding error dW changes the loss
by sum_ti g_ti (dW x_t)_i; the expectation of its square, with tokens and output channels taken as independent, is
sum_i dW_i (sum_t g_ti^2 x_t x_t^T) dW_i^T. One matrix for all rows takes the place of each row's own: their mean. It is
the Gauss-Newton matrix of the loss with the outputs' factor reduced to a multiple of the identity (Martens and Grosse,
2015), and unlike the plain product of two means it keeps that some tokens matter more than others. The module does not
know which loss is differentiated; with a drift loss it counts drift.

The products of one forward are computed in float32 and added up in float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from daptq.errors import CalibrationDataError, InvalidInputError
from daptq.layers.watching import watch, watch_outputs
from daptq.numerics.symmetric import symmetric_part

__all__ = ["GramStatistics", "observe_grams"]


class GramStatistics:
    """Gram matrices by layer.

    Attributes:
        counts: Number of tokens taken in, by layer.
    """

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self._grams: dict[str, Float[Tensor, "in in"]] = {}

    def add(self, name: str, x: Float[Tensor, "n in"], gradient: Float[Tensor, "n out"] | None = None) -> None:
        """Takes in the inputs of one forward.

        Args:
            name: The layer.
            x: Float (n, in), its inputs.
            gradient: Float (n, out), the gradient of the loss at its outputs; by default every token counts 1.

        Raises:
            CalibrationDataError: An input or gradient is not finite. Nothing was taken in.
        """
        rows, factor = x.to(torch.float32), 1.0
        if gradient is not None:
            # In float32 the square of a small gradient would vanish; the largest root is taken out of the product.
            roots = gradient.to(torch.float64).square().mean(dim=1, keepdim=True).sqrt()
            factor = float(roots.max()) if len(roots) else 0.0
            rows = rows * (roots / (factor or 1.0)).to(rows)
        product = (rows.mT @ rows).to(torch.float64) * factor**2
        product = symmetric_part(product)  # A float32 product is symmetric up to rounding only.
        if not bool(torch.isfinite(product).all()):
            raise CalibrationDataError(f"inputs of layer {name} must be finite, got other values. Check the batch.")
        self._grams[name] = self._grams[name] + product if name in self._grams else product
        self.counts[name] = self.counts.get(name, 0) + len(x)

    def gram(self, name: str) -> Float[Tensor, "in in"]:
        """The sum of (weighted) outer products of a layer's inputs, float64 (in, in).

        Raises:
            InvalidInputError: The layer was not seen.
        """
        if name not in self._grams:
            raise InvalidInputError(
                f"layer {name} must run while its inputs are observed, got no call of it. Observe it while the policy "
                "runs (and, with weights, while gradients are taken)."
            )
        return self._grams[name]

    def tensors(self) -> dict[str, Tensor]:
        """Every Gram matrix for an artifact, float64 ``<layer>/gram``."""
        return {f"{name}/gram": gram for name, gram in self._grams.items()}


@contextmanager
def observe_grams(policy: nn.Module, names: Sequence[str], *, weighted: bool) -> Iterator[GramStatistics]:
    """Within the block, every run of the named layers adds to their Gram matrices.

    Args:
        policy: The policy to watch; its outputs and gradients are not changed, and the hooks are gone after the block.
        names: Module paths of linear layers.
        weighted: Weigh every token by the squared gradient at the layer's output. A token is then taken in when the
            caller's backward pass reaches it: run forward and backward with gradients enabled, and with parameters
            that require gradients in or before each layer. Calls that the policy makes without gradients (greedy
            decoding of tokens) decide nothing that is differentiated and are left out.

    Raises:
        InvalidInputError: With weights, a layer ran whose output has no gradient (raised out of the forward).
    """
    statistics = GramStatistics()

    def plain(name: str, x: Tensor) -> None:
        statistics.add(name, _rows(x))

    def with_gradient(name: str, x: Tensor, output: Tensor) -> None:
        if not torch.is_grad_enabled():
            return
        if not output.requires_grad:
            raise InvalidInputError(
                f"output of layer {name} must require a gradient to weigh its inputs, got one without. Enable "
                "gradients for its weight."
            )
        rows = _rows(x)
        output.register_hook(lambda gradient: statistics.add(name, rows, _rows(gradient)))

    with watch_outputs(policy, names, with_gradient) if weighted else watch(policy, names, plain):
        yield statistics


def _rows(values: Float[Tensor, "*batch n"]) -> Float[Tensor, "m n"]:
    """Detached, all leading axes in one."""
    return values.detach().reshape(-1, values.shape[-1])
