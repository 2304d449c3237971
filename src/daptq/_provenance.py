"""Where a result comes from: versions, machine, time, recipe, data and seed.

Versions are read from the installed distributions' metadata, so nothing is imported for it.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field

from daptq.json_model import JsonModel

__all__ = ["Provenance", "provenance"]

_PACKAGES = ("daptq", "torch", "numpy", "scipy", "safetensors", "transformers", "tokenizers", "mujoco", "gymnasium")


class Provenance(JsonModel):
    """Where a result comes from. It may hold more than what is listed.

    Attributes:
        recipe: The resolved recipe; null where nothing was quantized.
        data_hash: SHA-256 of the data; null without data.
        seed: Seed of everything random.
        versions: Versions of daptq and of the packages whose arithmetic it uses; null for one that is not installed.
        python: Version of Python.
        platform: Operating system.
        cpu: Model of the processor.
        cpu_count: Number of processors.
        time: UTC time to the second.
    """

    model_config = ConfigDict(extra="allow")

    recipe: dict[str, Any] | None = None
    data_hash: str | None = None
    seed: int | None
    versions: dict[str, str | None]
    python: str = ""
    platform: str = ""
    cpu: str = ""
    cpu_count: int | None = None
    time: Annotated[str, Field(json_schema_extra={"format": "date-time"})]


def provenance(
    *, recipe: Mapping[str, Any] | None = None, data_hash: str | None = None, seed: int | None = None
) -> dict[str, Any]:
    """Where a result comes from, as a JSON object.

    Args:
        recipe: The resolved recipe.
        data_hash: SHA-256 of the calibration data or of the demonstrations.
        seed: Seed of everything random.

    Returns:
        The arguments, versions of daptq and of the packages whose arithmetic it uses, Python, platform, processor and
        UTC time to the second.
    """
    return {
        "recipe": None if recipe is None else dict(recipe),
        "data_hash": data_hash,
        "seed": seed,
        "versions": {name: _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cpu_count": os.cpu_count(),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _version(distribution: str) -> str | None:
    """Installed version of a distribution, or None."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    """Model name of the processor."""
    try:
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        match = None
    return match.group(1) if match else platform.processor() or platform.machine()
