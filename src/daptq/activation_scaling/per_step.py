"""Scaling per step: as static scaling, with a scale for each denoising step in the layers that run in every step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from daptq.activation_scaling.contract import InputRanges
from daptq.activation_scaling.percentile import PercentileScaling

__all__ = ["ACTIVATION_SCALING", "PerStepConfig"]


@dataclass(frozen=True, kw_only=True)
class PerStepConfig(PercentileScaling):
    """Settings of scaling per step.

    Attributes:
        percentile: Part of the calibration values, in percent, that a range does not clip.
    """

    method: ClassVar[str] = "per-step"

    def kept_ranges(self, inputs: InputRanges, *, steps: int) -> Float[Tensor, " steps"]:
        """One range for each denoising step."""
        return inputs.percentile(self.percentile, steps=steps)


ACTIVATION_SCALING = PerStepConfig
