"""What quantizing a layer's input does to a differentiated value, summed over the tokens of a forward.

For a layer y = W x whose input is read as x^ the value changes, to first order, by sum_t g_t . W (x^_t - x_t), g_t the
gradient at the output. With A = sum_t g_t (x^_t - x_t)^T that is <A, W>, for whatever weight the layer will have. The
module does not know how inputs are quantized.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from daptq.layers.watching import watch_outputs

__all__ = ["InputErrors", "observe_input_errors"]

QuantizedInput = Callable[[str, Tensor], Tensor]


class InputErrors:
    """The matrices A of one backward pass, by layer."""

    def __init__(self) -> None:
        self._sums: dict[str, Float[Tensor, "out in"]] = {}

    def add(self, name: str, error: Float[Tensor, "n in"], gradient: Float[Tensor, "n out"]) -> None:
        """Takes in the tokens of one call of a layer."""
        product = gradient.mT @ error.to(gradient)
        self._sums[name] = self._sums[name] + product if name in self._sums else product

    def take(self, name: str) -> Float[Tensor, "out in"] | None:
        """A of a layer, float (out, in), and forgets it; None for a layer that no gradient has reached."""
        return self._sums.pop(name, None)


@contextmanager
def observe_input_errors(policy: nn.Module, names: Sequence[str], quantized: QuantizedInput) -> Iterator[InputErrors]:
    """Within the block, every backward pass through the named layers adds to their matrices.

    Args:
        policy: The policy to watch; its outputs and gradients are not changed, and the hooks are gone after the block.
        names: Module paths of linear layers.
        quantized: Called with a layer's name and its input, float (n, in); returns the input as the quantized layer
            reads it, in the same shape.
    """
    errors = InputErrors()

    def add(name: str, values: Tensor, output: Tensor) -> None:
        if not output.requires_grad:
            return
        with torch.no_grad():
            x = values.detach().reshape(-1, values.shape[-1])
            error = quantized(name, x) - x
        output.register_hook(
            lambda gradient: errors.add(name, error, gradient.detach().reshape(-1, gradient.shape[-1]))
        )

    with watch_outputs(policy, names, add):
        yield errors
