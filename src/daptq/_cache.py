"""Where daptq keeps what it can make again: compiled kernels, choices of a kernel, recordings, an installed driver."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_folder"]


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/daptq``, or ``~/.cache/daptq``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "daptq"
