"""What stands for the weight of a low-bit layer where code asks for its shape, dtype or device.

Models cast activations to the dtype of the next layer's weight. A layer that keeps its weight in another form must
answer the dtype that it computes in, or it would change that of the activations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from daptq.errors import InvalidInputError

__all__ = ["StandIn"]


class StandIn(Tensor):
    """A tensor with shape, dtype and device but without memory; an operation reads the values that it needs.

    It is not to be written to: that would change nothing.

    Args:
        shape: Of the weight.
        dtype: That code sees.
        device: Of the weight.
        read: Gives the values in `dtype`, or raises.
    """

    _read: Callable[[], Tensor]

    @staticmethod
    def __new__(
        cls, shape: tuple[int, int], *, dtype: torch.dtype, device: torch.device, read: Callable[[], Tensor]
    ) -> StandIn:
        """Makes the wrapper."""
        made: StandIn = Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=device)
        made._read = read
        return made

    def __init__(
        self, shape: tuple[int, int], *, dtype: torch.dtype, device: torch.device, read: Callable[[], Tensor]
    ) -> None:
        """Everything is kept when it is made."""

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"<stands for a weight, shape {tuple(self.shape)}, dtype {self.dtype}, device {self.device}>"

    def __setitem__(self, *_: object) -> None:
        """Refuses to write."""
        raise _written("an assignment")

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        if func._schema.is_mutable:
            raise _written(func)

        def read(value: Any) -> Any:
            return value._read() if isinstance(value, StandIn) else value

        return func(*tree_map(read, args), **tree_map(read, kwargs or {}))


def _written(operation: object) -> InvalidInputError:
    """The error of an operation that writes."""
    return InvalidInputError(
        f"weight of a low-bit layer must not be written to, got {operation}. Replace the layer, or write to what it "
        "keeps (resident_weight)."
    )
