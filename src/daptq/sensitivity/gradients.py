"""Gradients of some parameters and of no others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

__all__ = ["only_gradients_of"]


@contextmanager
def only_gradients_of(model: nn.Module, parameters: Mapping[str, Tensor]) -> Iterator[None]:
    """Within the block only the given parameters of `model` require gradients, so a backward pass stops early."""
    wanted = {id(parameter) for parameter in parameters.values()}
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in before:
            parameter.requires_grad_(id(parameter) in wanted)
        yield
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)
