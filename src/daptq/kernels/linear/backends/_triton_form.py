"""What the Triton backends share without importing Triton: where its kernels can run, and what they keep of a weight.

A weight stays packed, as it is on disk, with zero points as int8. The kernels run on a CUDA device, or on the CPU in
Triton's interpreter.
"""

from __future__ import annotations

import importlib.util
import os

import torch

from daptq.kernels.linear.contract import PackedWeight, PreparedLinear

__all__ = ["TritonLinear", "interpreted", "runs_on", "unavailable"]


def interpreted() -> bool:
    """Whether the environment asks for Triton's interpreter; it must do so before Triton is imported."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def unavailable() -> str | None:
    """Why Triton's kernels cannot run on this machine, or None."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if not torch.cuda.is_available() and not interpreted():
        return "there is no CUDA device, and TRITON_INTERPRET=1 does not ask for Triton's interpreter"
    return None


def runs_on(device: torch.device) -> str | None:
    """Why Triton's kernels cannot take tensors on a device, or None."""
    wanted = "cpu" if interpreted() else "cuda"
    return None if device.type == wanted else f"Triton runs on {wanted} here, not on {device.type}"


class TritonLinear(PreparedLinear):
    """The packed weight, with zero points as int8; a backend adds how it multiplies.

    Args:
        weight: The weight.
    """

    def __init__(self, weight: PackedWeight) -> None:
        self._weight = weight
        self._zero_point = weight.zero_points()

    def weight(self) -> PackedWeight:
        """See `PreparedLinear.weight`."""
        return self._weight

    def resident_bytes(self) -> int:
        """See `PreparedLinear.resident_bytes`."""
        return self._weight.nbytes() + (0 if self._zero_point is None else self._zero_point.nbytes)
