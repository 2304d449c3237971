"""What earlier processes on this machine measured to be the fastest backend, one JSON file for each shape.

The times of all candidates and of bfloat16 are kept with the choice: a later process knows what it costs.

A choice that is kept stays: of processes that measure a shape side by side the first to finish decides for all, so that
they multiply with the same kernel.

The files lie in the user's cache, in a folder named after the processor, torch's version and the source of every
backend, so that a new kernel or another machine starts without any. A file that cannot be read or written costs a
measurement and a warning. Delete the folder to have everything measured again.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import logging
import math
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from daptq._atomic import write_bytes
from daptq.catalog import KERNELS
from daptq.errors import OutputWriteError
from daptq.kernels import linear
from daptq.kernels.compiled import kernel_cache

__all__ = ["MARGIN", "Choice", "choices_folder", "recall", "remember"]

SCHEMA_VERSION = 2

# bfloat16 is called faster when a kernel takes this many times as long: less is noise.
MARGIN = 1.05

_PROCESSOR = Path("/proc/cpuinfo")

_log = logging.getLogger("daptq.kernels")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What was measured for a shape.

    Attributes:
        kernel: The backend that was chosen.
        milliseconds: Time of one product with each candidate.
        bfloat16_milliseconds: Time of the same layer in bfloat16.
    """

    kernel: str
    milliseconds: Mapping[str, float]
    bfloat16_milliseconds: float

    def ratio_to_bfloat16(self, kernel: str | None) -> float | None:
        """Time with a kernel divided by that in bfloat16; None for a kernel that was no candidate."""
        if kernel is None or kernel not in self.milliseconds:
            return None
        return self.milliseconds[kernel] / self.bfloat16_milliseconds

    @property
    def slower(self) -> bool:
        """Whether bfloat16 is faster than the chosen kernel by more than noise."""
        return self.milliseconds[self.kernel] > MARGIN * self.bfloat16_milliseconds

    def explanation(self) -> str:
        """What the choice means, for people."""
        losing = ": low bits are slower here" if self.slower else ""
        return f"bfloat16 takes {self.bfloat16_milliseconds:.3f} ms{losing}"


def recall(shape: str) -> Choice | None:
    """What was chosen for a shape before, or None; the backend may have become unavailable since.

    Args:
        shape: Everything but the machine that a choice depends on, as a file name without ending.
    """
    path = choices_folder() / f"{shape}.json"
    try:
        document = json.loads(path.read_bytes())
        if document["schema_version"] != SCHEMA_VERSION or document["kernel"] not in KERNELS.names():
            return None
        times = {str(kernel): float(time) for kernel, time in document["milliseconds"].items()}
        floats = float(document["bfloat16_milliseconds"])
        if not all(0 < time < math.inf for time in (times[document["kernel"]], floats)):
            raise ValueError("its times are none")
        return Choice(kernel=str(document["kernel"]), milliseconds=times, bfloat16_milliseconds=floats)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        _log.warning("%s could not be read (%s): the kernels are measured again", path, error)
        return None


def remember(shape: str, choice: Choice) -> Choice:
    """Keeps a choice and its times for later processes, unless another process was quicker.

    Args:
        shape: As in `recall`.
        choice: What was measured.

    Returns:
        The choice that is kept: that of another process where its kernel is a candidate of this one.
    """
    document = {"schema_version": SCHEMA_VERSION, **asdict(choice)}
    try:
        with _alone(choices_folder()):
            kept = recall(shape)
            if kept is not None and kept.kernel in choice.milliseconds:
                return kept
            write_bytes(choices_folder() / f"{shape}.json", json.dumps(document, indent=1).encode())
    except (OSError, OutputWriteError) as error:
        _log.warning("the choice of a kernel is not kept for later processes: %s", error)
    return choice


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Within the block no other process keeps a choice in the folder; the lock of one that dies is released."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def choices_folder() -> Path:
    """Folder of this machine's choices with these versions of torch and of the backends."""
    return kernel_cache() / "choices" / _machine()


@functools.cache
def _machine() -> str:
    """Hash of the processor, of torch's version and of every backend's name and source."""
    key = hashlib.sha256()
    for part in (_processor(), torch.__version__, ",".join(KERNELS.names())):
        key.update(f"{len(part)} {part}".encode())
    for folder in (Path(__file__).parent, Path(linear.__file__).parent):
        for path in sorted(folder.rglob("*.*")):
            if path.suffix in (".py", ".cpp"):
                key.update(path.read_bytes())
    return key.hexdigest()[:32]


def _processor() -> str:
    """Model and instruction sets: a virtual machine's model name alone may stand for several processors."""
    lines = _PROCESSOR.read_text(encoding="utf-8").splitlines() if _PROCESSOR.exists() else []
    told = sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
    return "\n".join([platform.machine(), torch.backends.cpu.get_cpu_capability(), *told])
