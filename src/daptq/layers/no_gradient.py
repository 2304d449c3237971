"""A product without gradient inside a graph that has one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from daptq.errors import InvalidInputError

__all__ = ["NoGradient"]


class NoGradient(torch.autograd.Function):
    """Runs a product inside a graph, and says so when a gradient is asked of it instead of returning zeros."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, multiply: Callable[[Tensor], Tensor]) -> Tensor:  # noqa: ARG004
        """Runs the module."""
        return multiply(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, ...]:  # noqa: ARG004
        """Refuses."""
        raise InvalidInputError(
            "a quantized layer must not be differentiated, got a backward pass through one. "
            "Take gradients of the full-precision policy."
        )
