"""The public conformance suite of an activation scaling: its contract, checked on made-up ranges."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from daptq.activation_scaling.contract import ActivationScaling
from daptq.errors import require_check

__all__ = ["check_activation_scaling"]

STEPS = (1, 4)
BITS = (4, 8)


class _Ranges:
    """Ranges that grow with the percentile and with the step; `size` 0 stands for a layer that saw only zeros."""

    def __init__(self, size: float) -> None:
        self.size = size

    def percentile(self, percent: float, *, steps: int = 1) -> Float[Tensor, " steps"]:
        return self.size * percent * (1 + torch.arange(steps, dtype=torch.float32))


def check_activation_scaling(method: ActivationScaling) -> None:
    """Checks that a method keeps the contract of `ActivationScaling`.

    Raises:
        CheckFailedError: Something differs; the message names the first difference.
    """
    for steps in STEPS:
        for size in (1.0, 0.0):
            ranges = method.kept_ranges(_Ranges(size), steps=steps) if method.needs.ranges else None
            if ranges is not None:
                allowed = ranges.dtype == torch.float32 and tuple(ranges.shape) in ((1,), (steps,))
                require_check(allowed, f"ranges of {steps} steps must be float32 (1,) or ({steps},), got {ranges}")
            for num_bits in BITS:
                scales, again = method.scales(ranges, num_bits), method.scales(ranges, num_bits)
                if scales is None:
                    require_check(again is None and ranges is None, "scales must be None at each call or at none")
                    continue
                require_check(scales.dtype == torch.float32, f"scales must be float32, got {scales.dtype}")
                require_check(tuple(scales.shape) in ((1,), (steps,)), f"scales must have shape (1,) or ({steps},)")
                positive = bool((torch.isfinite(scales) & (scales > 0)).all())
                require_check(positive, f"scales must be positive and finite, got {scales.tolist()}")
                require_check(again is not None and torch.equal(scales, again), "scales must be the same at each call")
