"""Dynamic scaling: every token is scaled by its own largest magnitude when it comes. It reads no calibration data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from daptq.activation_scaling.contract import ActivationScaling

__all__ = ["ACTIVATION_SCALING", "DynamicConfig"]


@dataclass(frozen=True, kw_only=True)
class DynamicConfig(ActivationScaling):
    """Dynamic scaling has no settings."""

    method: ClassVar[str] = "dynamic"

    def scales(
        self,
        ranges: Float[Tensor, " entries"] | None,  # noqa: ARG002  (nothing is measured)
        num_bits: int,  # noqa: ARG002
    ) -> None:
        """None: there is no table."""
        return


ACTIVATION_SCALING = DynamicConfig
