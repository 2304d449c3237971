"""Whether Triton's kernels can run: on a CUDA device, or on the CPU in Triton's interpreter. Does not import Triton."""

from __future__ import annotations

import importlib.util
import os

import torch

__all__ = ["interpreted", "runs_on", "unavailable"]


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
