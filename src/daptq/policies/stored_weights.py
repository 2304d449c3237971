"""The tensors of a policy where some of them stay in files: read as float32 when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from daptq.tensor_files import StoredTensor

__all__ = ["PolicyTensors", "StoredWeights"]


class StoredWeights:
    """The tensors of a policy in files, read as float32.

    Args:
        stored: Where each tensor lies, by its name in the policy.
        bfloat16: Round to bfloat16 first, as a checkpoint would hold them.
    """

    def __init__(self, stored: Mapping[str, StoredTensor], *, bfloat16: bool = False) -> None:
        self._stored = stored
        self._bfloat16 = bfloat16

    def rounded(self) -> StoredWeights:
        """The same weights, rounded to bfloat16."""
        return StoredWeights(self._stored, bfloat16=True)

    def tensor(self, name: str) -> Float[Tensor, "*shape"]:
        """One tensor, float32."""
        return self._float32(self._stored[name].read())

    def rows(self, name: str, indices: Int[Tensor, " n"]) -> Float[Tensor, "n columns"]:
        """Some rows of a matrix, float32."""
        return self._float32(self._stored[name].rows(indices))

    def _float32(self, values: Tensor) -> Tensor:
        return (values.to(torch.bfloat16) if self._bfloat16 else values).to(torch.float32)


class PolicyTensors(Mapping[str, Tensor]):
    """Parameters and persistent buffers of a policy by name, in the order of its state dict.

    What is in memory is given as it is; a streamed weight is read, float32, each time it is asked for.

    Args:
        present: The policy's state dict; what stays in files is on the meta device.
        weights: Holds what stays in files; None for a policy in memory.
    """

    def __init__(self, present: Mapping[str, Tensor], weights: StoredWeights | None) -> None:
        self._present, self._weights = present, weights

    def __getitem__(self, name: str) -> Tensor:
        present = self._present[name]
        return self._weights.tensor(name) if present.is_meta and self._weights is not None else present

    def __iter__(self) -> Iterator[str]:
        return iter(self._present)

    def __len__(self) -> int:
        return len(self._present)
