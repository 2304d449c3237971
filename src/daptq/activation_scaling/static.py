"""Static scaling: one scale for a layer, by what calibration saw; activations past the range are clipped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from daptq.activation_scaling.contract import InputRanges
from daptq.activation_scaling.percentile import PercentileScaling

__all__ = ["ACTIVATION_SCALING", "StaticConfig"]


@dataclass(frozen=True, kw_only=True)
class StaticConfig(PercentileScaling):
    """Settings of static scaling.

    Attributes:
        percentile: Part of the calibration values, in percent, that the range does not clip.
    """

    method: ClassVar[str] = "static"

    def kept_ranges(self, inputs: InputRanges, *, steps: int) -> Float[Tensor, " 1"]:  # noqa: ARG002  (one for all)
        """One range over all denoising steps."""
        return inputs.percentile(self.percentile)


ACTIVATION_SCALING = StaticConfig
