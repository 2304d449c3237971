"""What stands for the float weight of a quantized layer where code asks for its shape, dtype or device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from daptq.errors import InvalidInputError

__all__ = ["WeightWithoutValues"]


class WeightWithoutValues(Tensor):
    """A tensor with shape, dtype and device but without memory; every operation on it raises."""

    @staticmethod
    def __new__(cls, shape: tuple[int, int], device: torch.device) -> WeightWithoutValues:
        """Makes the wrapper."""
        made: WeightWithoutValues = Tensor._make_wrapper_subclass(cls, shape, dtype=torch.float32, device=device)
        return made

    def __init__(self, shape: tuple[int, int], device: torch.device) -> None:
        """Nothing is kept."""

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"<weight of a quantized layer, shape {tuple(self.shape)}, device {self.device}, no values>"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise InvalidInputError(
            f"weight of a quantized layer must be read for its shape, dtype and device only, got {func}. "
            "Call dequantize() for its values."
        )
