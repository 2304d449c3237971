"""The device that a measurement runs on: the CPU, or a CUDA device where torch finds one."""

from __future__ import annotations

import torch

from daptq.artifacts import provenance
from daptq.errors import InvalidInputError, UnknownNameError

__all__ = ["DEVICES", "device_name", "find_device"]

DEVICES = ("cpu", "cuda")


def find_device(name: str) -> torch.device:
    """The device of this name.

    Args:
        name: ``"cpu"`` or ``"cuda"``.

    Raises:
        UnknownNameError: There is no such kind of device.
        InvalidInputError: This machine, or this build of torch, has none.
    """
    if name not in DEVICES:
        raise UnknownNameError("device", name, DEVICES)
    if name == "cuda" and not torch.cuda.is_available():
        raise InvalidInputError(
            f"device must be one that torch finds, got 'cuda' and torch {torch.__version__} finds no GPU. "
            "Install a driver and a build of torch with CUDA, or use 'cpu'."
        )
    return torch.device(name)


def device_name(device: torch.device) -> str:
    """Model name of the GPU or of the processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else provenance()["cpu"]
