"""What small policies written for tests have in common: no configuration, no files, actions in hundredths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from daptq.policies.contract import Batch, Policy


class PlainPolicy(Policy):
    """A policy that is built without arguments."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any], files: Mapping[str, bytes], *, empty: bool = False) -> Self:
        with torch.device("meta" if empty else "cpu"):
            return cls().eval()

    def config(self) -> dict[str, Any]:
        return {}

    def files(self) -> dict[str, bytes]:
        return {}

    def executed(self, chunk: Tensor, batch: Batch) -> Tensor:
        return 0.01 * chunk

    def unlimited(self, chunk: Tensor, batch: Batch) -> Tensor:
        return self.executed(chunk, batch)

    @property
    def action_unit(self) -> Tensor:
        return torch.full((self.action_dim,), 0.01)
