"""What earlier processes on this machine measured to be the fastest backend, one JSON file for each shape.

The files lie in the user's cache, in a folder named after the processor, torch's version and the source of every
backend, so that a new kernel or another machine starts without any. A file that cannot be read or written costs a
measurement and a warning. Delete the folder to have everything measured again.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import platform
from collections.abc import Mapping
from pathlib import Path

import torch

from daptq._atomic import write_bytes
from daptq.catalog import KERNELS
from daptq.errors import OutputWriteError
from daptq.kernels._compiled import cache_folder

__all__ = ["choices_folder", "recall", "remember"]

SCHEMA_VERSION = 1

_PROCESSOR = Path("/proc/cpuinfo")

_log = logging.getLogger("daptq.kernels")


def recall(shape: str) -> str | None:
    """The backend that was chosen for a shape before, or None; it may have become unavailable since.

    Args:
        shape: Everything that a choice depends on beside the machine, as a file name without ending.
    """
    path = choices_folder() / f"{shape}.json"
    try:
        document = json.loads(path.read_bytes())
        known = document["schema_version"] == SCHEMA_VERSION and document["kernel"] in KERNELS.names()
        return str(document["kernel"]) if known else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        _log.warning("%s could not be read (%s): the kernels are measured again", path, error)
        return None


def remember(shape: str, name: str, seconds: Mapping[str, float]) -> None:
    """Keeps a choice and the times behind it for later processes.

    Args:
        shape: As in `recall`.
        name: The backend that was chosen.
        seconds: Measured time of one product with each candidate.
    """
    milliseconds = {candidate: 1e3 * time for candidate, time in seconds.items()}
    document = {"schema_version": SCHEMA_VERSION, "kernel": name, "milliseconds": milliseconds}
    try:
        write_bytes(choices_folder() / f"{shape}.json", json.dumps(document, indent=1).encode())
    except OutputWriteError as error:
        _log.warning("the choice of a kernel is not kept for later processes: %s", error)


def choices_folder() -> Path:
    """Folder of this machine's choices with these versions of torch and of the backends."""
    return cache_folder() / "choices" / _machine()


@functools.cache
def _machine() -> str:
    """Hash of the processor, of torch's version and of every backend's name and source."""
    key = hashlib.sha256()
    for part in (_processor(), torch.__version__, ",".join(KERNELS.names())):
        key.update(f"{len(part)} {part}".encode())
    for path in sorted(Path(__file__).parent.glob("*.*")):
        if path.suffix in (".py", ".cpp"):
            key.update(path.read_bytes())
    return key.hexdigest()[:32]


def _processor() -> str:
    """Model and instruction sets: a virtual machine's model name alone may stand for several processors."""
    lines = _PROCESSOR.read_text(encoding="utf-8").splitlines() if _PROCESSOR.exists() else []
    told = sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
    return "\n".join([platform.machine(), torch.backends.cpu.get_cpu_capability(), *told])
